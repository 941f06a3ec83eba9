"""Checks the Kubernetes manifests of a folder:  manifests.py FOLDER OUT

Every resource against the schemas of Kubernetes, strictly (package kubernetes-validate), and what no schema says:
that names which one resource uses are made by another. Writes into OUT what the programs would be given:
bigbrotr.toml, and CONTAINER.env with a line NAME=VALUE per variable. Prints one line per fault; exit code 1 with any.
"""

import pathlib
import sys

import kubernetes_validate
import yaml

VERSION = "1.37"
# What KEDA's ScaledObject and TriggerAuthentication hold, as far as it is used here: no package has its schemas strictly.
KEDA = {
    "ScaledObject": {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "cooldownPeriod", "advanced", "triggers"},
    "TriggerAuthentication": {"secretTargetRef"},
}
# worker.grace_s, the time a stopping worker takes for itself.
GRACE_S = 20

faults = []


def fault(where, what):
    faults.append(f"{where}: {what}")


class Strict(yaml.SafeLoader):
    """A key that is there twice is a mistake, not a choice."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        for key in {key for key in keys if keys.count(key) > 1}:
            fault(node.start_mark, f"{key} is there twice")
        return super().construct_mapping(node, deep)


def load(folder):
    found = []
    for file in sorted(folder.glob("*.yaml")):
        for doc in yaml.load_all(file.read_text(encoding="utf-8"), Strict):
            found.append((file.name, doc))
    return found


def by_schema(name, doc):
    where = f"{name} {doc['kind']}"
    if doc["apiVersion"].startswith("keda.sh/"):
        for key in set(doc["spec"]) - KEDA[doc["kind"]]:
            fault(where, f"KEDA knows no {key}")
        return
    try:
        kubernetes_validate.validate(doc, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        fault(where, f"{'.'.join(map(str, error.path))}: {error.message}")
    except kubernetes_validate.SchemaNotFoundError as error:
        fault(where, str(error))


def pod(where, kind, template, made, out):
    spec = template["spec"]
    if not spec["securityContext"].get("runAsNonRoot") or spec.get("automountServiceAccountToken") is not False:
        fault(where, "runs as root, or gets a token of the cluster")
    if spec.get("enableServiceLinks") is not False:
        fault(where, "gets a variable for each Service of the namespace, which may begin like ours")
    volumes = {}
    for volume in spec.get("volumes", []):
        volumes[volume["name"]] = volume
        secrets = [volume["secret"]["secretName"]] if "secret" in volume else []
        for source in volume.get("projected", {}).get("sources", []):
            secrets.append(source["secret"]["name"])
            keys = {item["key"] for item in source["secret"].get("items", [])}
            for key in keys - made["Secret"].get(source["secret"]["name"], set()):
                fault(where, f"the secret {source['secret']['name']} has no {key}")
        for secret in secrets:
            if secret not in made["Secret"]:
                fault(where, f"no secret {secret}")
        if "configMap" in volume and volume["configMap"]["name"] not in made["ConfigMap"]:
            fault(where, f"no config map {volume['configMap']['name']}")
    for container in spec["containers"]:
        context = container.get("securityContext", {})
        if (context.get("allowPrivilegeEscalation") is not False or not context.get("readOnlyRootFilesystem")
                or context.get("capabilities", {}).get("drop") != ["ALL"]):
            fault(where, f"{container['name']} may do more than it needs")
        if not {"requests", "limits"} <= set(container.get("resources", {})):
            fault(where, f"{container['name']} has no requests or no limits")
        files = readable(where, container, volumes, made)
        lines = []
        for variable in container.get("env", []):
            value = variable.get("value")
            if value is None or (value.startswith("/") and value not in files):
                fault(where, f"{variable['name']} names no file that is mounted: {value}")
            lines.append(f"{variable['name']}={value}\n")
        (out / f"{container['name']}.env").write_text("".join(lines), encoding="utf-8")
        if kind == "Deployment":
            ports = {port["name"] for port in container.get("ports", [])}
            for probe, path in (("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
                get = container.get(probe, {}).get("httpGet", {})
                if get.get("path") != path or get.get("port") not in ports:
                    fault(where, f"{container['name']} has no {probe} of {path} at a port of its own")


def readable(where, container, volumes, made):
    """The files that a container finds mounted."""
    files = set()
    for mount in container.get("volumeMounts", []):
        volume = volumes.get(mount["name"])
        if volume is None:
            fault(where, f"no volume {mount['name']}")
            continue
        names = set()
        if "secret" in volume:
            names = made["Secret"].get(volume["secret"]["secretName"], set())
        elif "configMap" in volume:
            names = made["ConfigMap"].get(volume["configMap"]["name"], set())
        for source in volume.get("projected", {}).get("sources", []):
            items = source["secret"].get("items")
            names |= {item["path"] for item in items} if items else made["Secret"].get(source["secret"]["name"], set())
        files |= {f"{mount['mountPath']}/{name}" for name in names}
    return files


def main(folder, out):
    documents = load(folder)
    resources = [(name, doc) for name, doc in documents if doc["kind"] != "Kustomization"]
    made = {"Secret": {}, "ConfigMap": {}, "Deployment": {}}
    labels = []
    for name, doc in resources:
        by_schema(name, doc)
        if doc["kind"] == "Secret":
            made["Secret"][doc["metadata"]["name"]] = set(doc["stringData"])
        elif doc["kind"] == "ConfigMap":
            made["ConfigMap"][doc["metadata"]["name"]] = set(doc["data"])
            (out / "bigbrotr.toml").write_text(doc["data"]["bigbrotr.toml"], encoding="utf-8")
        elif doc["kind"] in ("Deployment", "Job"):
            labels.append(doc["spec"]["template"]["metadata"]["labels"])
            if doc["kind"] == "Job" and doc["metadata"].get("labels") != labels[-1]:
                fault(name, "the Job cannot be applied by its label")
            if doc["kind"] == "Deployment":
                made["Deployment"][doc["metadata"]["name"]] = doc
    images = set()
    for name, doc in resources:
        where, spec = f"{name} {doc['kind']} {doc['metadata']['name']}", doc.get("spec", {})
        if doc["kind"] != "Namespace" and doc["metadata"].get("namespace") != "bigbrotr":
            fault(where, "is not in the namespace bigbrotr")
        if doc["kind"] in ("Deployment", "Job"):
            pod(where, doc["kind"], spec["template"], made, out)
            images |= {container["image"] for container in spec["template"]["spec"]["containers"]}
        if doc["kind"] == "Deployment" and spec["template"]["spec"]["terminationGracePeriodSeconds"] <= GRACE_S:
            fault(where, f"is killed before its grace of {GRACE_S} s is over")
        selector = spec.get("selector", spec.get("podSelector", {}))
        wanted = selector.get("matchLabels", {}) if isinstance(selector, dict) else {}
        if wanted and not any(wanted.items() <= own.items() for own in labels):
            fault(where, f"selects no pod: {wanted}")
        for rule in selector.get("matchExpressions", []):
            for value in rule["values"]:
                if not any(own.get(rule["key"]) == value for own in labels):
                    fault(where, f"selects no pod: {rule['key']} {value}")
        if doc["kind"] == "ScaledObject" and spec["scaleTargetRef"]["name"] not in made["Deployment"]:
            fault(where, f"scales no deployment: {spec['scaleTargetRef']['name']}")
        for reference in spec.get("secretTargetRef", []):
            if reference["key"] not in made["Secret"].get(reference["name"], set()):
                fault(where, f"no secret {reference['name']} with {reference['key']}")
    if len(images) != 1:
        fault("images", f"one image for all, not {sorted(images)}")
    for _, doc in documents:
        for resource in doc.get("resources", []) if doc["kind"] == "Kustomization" else []:
            if not (folder / resource).is_file():
                fault("kustomization.yaml", f"no {resource}")
    for line in faults:
        print(line)
    print(f"{len(resources)} resources, {len(faults)} faults, Kubernetes {VERSION}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])))
