#!/usr/bin/env python3
"""Makes the dashboards of deploy/grafana/dashboards out of the lists below: one place says how a panel looks.

    python3 deploy/grafana/make.py           writes them
    python3 deploy/grafana/make.py --check   says which differ, exit code 1

A panel never goes blank because all is well: what only faults count is written so that it shows zero.
"""
import json
import pathlib
import sys

FOLDER = pathlib.Path(__file__).parent / "dashboards"
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH = 24

# What is wrong when it is more than nothing, and what is wrong when it is nothing.
ZERO_IS_GOOD = [("green", None), ("red", 1)]
ZERO_IS_BAD = [("red", None), ("green", 1)]


def target(expr, legend, ref):
    return {"datasource": SOURCE, "editorMode": "code", "expr": expr, "legendFormat": legend, "range": True, "refId": ref}


def targets(queries):
    """Queries as (expression, legend) pairs; one alone may be a pair itself."""
    if isinstance(queries, tuple):
        queries = [queries]
    return [target(expr, legend, chr(ord("A") + i)) for i, (expr, legend) in enumerate(queries)]


def steps(colours):
    return {"mode": "absolute", "steps": [{"color": colour, "value": value} for colour, value in colours]}


def stat(title, queries, says, unit="short", colours=None, decimals=None):
    return {
        "type": "stat", "title": title, "description": says, "datasource": SOURCE, "targets": targets(queries),
        "fieldConfig": {
            "defaults": {
                "unit": unit, "color": {"mode": "thresholds"}, "thresholds": steps(colours or [("blue", None)]),
                **({} if decimals is None else {"decimals": decimals}),
            },
            "overrides": [],
        },
        "options": {
            "colorMode": "value", "graphMode": "area", "justifyMode": "auto", "orientation": "auto", "textMode": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        },
    }


def graph(title, queries, says, unit="short", stack=False, low=0):
    return {
        "type": "timeseries", "title": title, "description": says, "datasource": SOURCE, "targets": targets(queries),
        "fieldConfig": {
            "defaults": {
                "unit": unit, "min": low, "color": {"mode": "palette-classic"},
                "custom": {
                    "drawStyle": "line", "lineWidth": 1, "fillOpacity": 30 if stack else 10, "showPoints": "never",
                    "spanNulls": False, "stacking": {"group": "A", "mode": "normal" if stack else "none"},
                },
            },
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def row(title):
    return {"type": "row", "title": title, "collapsed": False, "panels": []}


def label_variable(name, metric, label, regex=""):
    return {
        "name": name, "label": name, "type": "query", "datasource": SOURCE, "refresh": 2, "sort": 1, "hide": 0,
        "definition": f"label_values({metric}, {label})", "regex": regex, "multi": True, "includeAll": True, "allValue": ".*",
        "query": {"query": f"label_values({metric}, {label})", "refId": "StandardVariableQuery"},
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]}, "options": [],
    }


def place(panels):
    """Rows take the whole width; stats stand six in a line, graphs two."""
    x = y = height = 0
    for number, panel in enumerate(panels, 1):
        w, h = {"row": (WIDTH, 1), "stat": (4, 4), "timeseries": (12, 8)}[panel["type"]]
        if x + w > WIDTH or (x and h != height):
            x, y = 0, y + height
        panel["id"] = number
        panel["gridPos"] = {"x": x, "y": y, "w": w, "h": h}
        x, height = x + w, h
    return panels


def dashboard(uid, title, says, panels, variables=()):
    source = {
        "name": "source", "label": "source", "type": "datasource", "query": "prometheus", "refresh": 1, "regex": "", "hide": 0,
        "multi": False, "includeAll": False, "current": {"selected": True, "text": "Prometheus", "value": "prometheus"}, "options": [],
    }
    others = {
        "type": "dashboards", "title": "BigBrotr", "tags": ["bigbrotr"], "asDropdown": True, "includeVars": False,
        "keepTime": True, "targetBlank": False, "icon": "external link", "tooltip": "", "url": "",
    }
    return {
        "uid": uid, "title": title, "description": says, "tags": ["bigbrotr"], "schemaVersion": 39, "version": 1,
        "editable": True, "graphTooltip": 1, "refresh": "30s", "timezone": "utc", "time": {"from": "now-6h", "to": "now"},
        "timepicker": {}, "fiscalYearStartMonth": 0, "weekStart": "", "links": [others], "annotations": {"list": []},
        "templating": {"list": [source, *variables]}, "panels": place(panels),
    }


def rate(metric, by="", where=""):
    """Per second. The programs begin each counter at zero, so that there is one before anything is counted."""
    over = f"rate({metric}{{{where}}}[$__rate_interval])" if where else f"rate({metric}[$__rate_interval])"
    return f"sum by ({by}) ({over})" if by else f"sum({over})"


def quantile(q, metric, by=(), where=""):
    labels = ", ".join([*by, "le"])
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{{{where}}}[$__rate_interval])))"


QUEUE = 'kind=~"$kind", network=~"$network"'
NETWORK = 'network=~"$network"'
DATABASE = 'datname=~"$database"'


def fleet():
    return dashboard("bigbrotr-fleet", "BigBrotr: fleet", "Who is there, whether they work, and how much.", [
        stat("Leaders", ("sum(bigbrotr_leader)", ""), "Schedulers that lead: one, always.", colours=[("red", None), ("green", 1), ("red", 2)]),
        stat("Workers", ('max(bigbrotr_workers{outcome="working"})', ""), "Workers whose lease stands and that do not drain.", colours=ZERO_IS_BAD),
        stat("Workers wanted", ("max(bigbrotr_autoscale_desired_workers)", ""), "How many would drain what is due within five minutes."),
        stat("Slots in use", ("sum(bigbrotr_jobs_running) / sum(bigbrotr_worker_slots)", ""), "Jobs that run, of all that could at once.", "percentunit"),
        stat("Processes ready", ("sum(bigbrotr_ready) / count(bigbrotr_ready)", ""), "Processes of which every part has done its work within its limit.", "percentunit", [("red", None), ("green", 1)]),
        stat("Alerts", ('count(ALERTS{alertstate="firing"}) or vector(0)', ""), "Alerts that fire, whichever they speak of.", colours=ZERO_IS_GOOD),
        row("Work"),
        graph("Attempts by verdict", (rate("bigbrotr_jobs_finished_total", "outcome"), "{{outcome}}"), "Attempts that ended per second. A relay that is down is a job that completes.", "ops", stack=True),
        graph("Attempts by kind", (rate("bigbrotr_jobs_finished_total", "kind"), "{{kind}}"), "The same by kind of job.", "ops", stack=True),
        graph("How long attempts run", [(quantile(0.5, "bigbrotr_job_run_seconds", ["kind"]), "{{kind}} p50"), (quantile(0.95, "bigbrotr_job_run_seconds", ["kind"]), "{{kind}} p95")], "Median and 95th percentile by kind.", "s"),
        graph("Running", ("sum by (kind) (max by (kind, network) (bigbrotr_queue_running_jobs))", "{{kind}}"), "Jobs that run, by kind.", stack=True),
        row("Workers"),
        graph("Workers", [("max by (outcome) (bigbrotr_workers)", "{{outcome}}"), ("max(bigbrotr_autoscale_desired_workers)", "wanted")], "Worker processes whose lease stands, and how many would drain what is due within five minutes."),
        graph("Backlog", ("max(bigbrotr_autoscale_backlog_seconds)", "work"), "Work that is due or running, as the time one slot after the other would take.", "s"),
        graph("Up for", ("time() - bigbrotr_process_start_time_seconds", "{{job}} {{instance}}"), "Since when each process runs: a saw is a restart loop.", "s"),
        graph("Versions", ("count by (version, job) (bigbrotr_build_info)", "{{job}} {{version}}"), "Processes per version: two during an upgrade, one after it.", stack=True),
        row("What goes wrong"),
        graph("Lost, rescued, unreadable", [(rate("bigbrotr_jobs_lost_total"), "results dropped"), (rate("bigbrotr_jobs_rescued_total"), "jobs rescued"), (rate("bigbrotr_jobs_unreadable_total"), "rows unreadable")], "All three are zero while workers end in an orderly way.", "ops"),
        graph("Calls that failed", [(rate("bigbrotr_queue_errors_total"), "queue loops"), (rate("bigbrotr_scheduler_errors_total", "outcome"), "scheduler {{outcome}}")], "Database calls of workers' loops, and what failed of a scheduler's work. They rise while the database is away.", "ops"),
        graph("Changes of the lead", ("max(bigbrotr_leader_term)", "term"), "The term rises by one with each change."),
        graph("Ready", ("min by (job, instance) (bigbrotr_ready)", "{{job}} {{instance}}"), "0: a part of the process has not done its work within its limit."),
    ])


def queues():
    return dashboard("bigbrotr-queues", "BigBrotr: queues", "Each queue by kind and network: what waits, what runs, what binds.", [
        stat("Due", (f"sum(max by (kind, network) (bigbrotr_queue_due_jobs{{{QUEUE}}}))", ""), "Jobs that are due and not claimed."),
        stat("Oldest due", (f"max(bigbrotr_queue_oldest_due_age_seconds{{{QUEUE}}})", ""), "How long the oldest of them has waited.", "s", [("green", None), ("yellow", 600), ("red", 1800)]),
        stat("Running", (f"sum(max by (kind, network) (bigbrotr_queue_running_jobs{{{QUEUE}}}))", ""), "Jobs that run."),
        stat("Died in an hour", (f"sum(max by (kind, network) (bigbrotr_queue_dead_jobs{{{QUEUE}}}))", ""), "Killed, or out of attempts, within the last hour.", colours=ZERO_IS_GOOD),
        stat("Held", (f"sum(max by (kind, network) (bigbrotr_queue_held{{{QUEUE}}}))", ""), "Queues that an operator pauses or drains.", colours=[("green", None), ("yellow", 1)]),
        stat("Unserved", (f"count(bigbrotr_queue_due_jobs{{{QUEUE}}} > 0 and on (kind, network) bigbrotr_queue_workers == 0) or vector(0)", ""), "Queues with work due that no live worker serves.", colours=ZERO_IS_GOOD),
        row("What waits"),
        graph("Due", (f"max by (kind, network) (bigbrotr_queue_due_jobs{{{QUEUE}}})", "{{kind}}.{{network}}"), "Due and not claimed."),
        graph("Age of the oldest due", (f"max by (kind, network) (bigbrotr_queue_oldest_due_age_seconds{{{QUEUE}}})", "{{kind}}.{{network}}"), "A queue that keeps up stays near zero.", "s"),
        graph("Scheduled ahead", (f"max by (kind, network) (bigbrotr_queue_scheduled_jobs{{{QUEUE}}})", "{{kind}}.{{network}}"), "Jobs whose time has not come."),
        graph("Enqueued", (rate("bigbrotr_jobs_enqueued_total", "kind", 'kind=~"$kind"'), "{{kind}}"), "Jobs enqueued per second.", "ops"),
        row("What runs"),
        graph("Running", (f"max by (kind, network) (bigbrotr_queue_running_jobs{{{QUEUE}}})", "{{kind}}.{{network}}"), "Jobs that run, all workers together.", stack=True),
        graph("Slots in use", (f"max by (kind, network) (bigbrotr_queue_running_jobs{{{QUEUE}}}) / sum by (kind, network) (bigbrotr_worker_slots{{{QUEUE}}})", "{{kind}}.{{network}}"), "Of the slots that workers have for the queue.", "percentunit"),
        graph("Ended", (f"sum by (kind, network) (rate(bigbrotr_jobs_finished_total{{{QUEUE}}}[$__rate_interval]))", "{{kind}}.{{network}}"), "Attempts that ended per second.", "ops"),
        graph("How long attempts run", (quantile(0.95, "bigbrotr_job_run_seconds", ["kind", "network"], QUEUE), "{{kind}}.{{network}}"), "95th percentile.", "s"),
        graph("Not completed", (rate("bigbrotr_jobs_finished_total", "kind, outcome", f'{QUEUE}, outcome!="complete"'), "{{kind}} {{outcome}}"), "Attempts that ended otherwise than complete: put off, retried, cancelled or killed.", "ops"),
        graph("Died in an hour", (f"max by (kind, network) (bigbrotr_queue_dead_jobs{{{QUEUE}}})", "{{kind}}.{{network}}"), "Killed, or out of attempts."),
        row("What binds"),
        graph("Permits lent", (f"max by (network) (bigbrotr_network_permits_lent{{{NETWORK}}}) / max by (network) (bigbrotr_network_permits{{{NETWORK}}} > 0)", "{{network}}"), "Of the jobs that may run on the network at once. At 1, more workers would not help.", "percentunit"),
        graph("Workers that serve", (f"max by (kind, network) (bigbrotr_queue_workers{{{QUEUE}}})", "{{kind}}.{{network}}"), "Live workers that claim from the queue."),
        graph("Breakers that are not closed", (f"max by (network) (bigbrotr_breakers{{{NETWORK}}})", "{{network}}"), "Vantages from which the network is out of reach."),
        graph("The call of a worker", [(quantile(0.5, "bigbrotr_queue_exchange_seconds"), "p50"), (quantile(0.99, "bigbrotr_queue_exchange_seconds"), "p99")], "How long it takes to acknowledge and claim.", "s"),
        graph("Jobs per claim", ("sum(rate(bigbrotr_queue_claim_size_sum[$__rate_interval])) / sum(rate(bigbrotr_queue_claim_size_count[$__rate_interval]))", "jobs"), "Jobs that a call brought which asked for some."),
        graph("Dead rows", ("max(bigbrotr_queue_dead_rows)", "rows"), "Of the live queue's table: a saw is vacuum at work, a slope a held snapshot."),
    ], [label_variable("kind", "bigbrotr_queue_due_jobs", "kind"), label_variable("network", "bigbrotr_queue_due_jobs", "network")])


def relays():
    state = f'max by (network, outcome) (bigbrotr_relays{{{NETWORK}}})'
    return dashboard("bigbrotr-relays", "BigBrotr: relays", "What is known of relays, and how it is found out.", [
        stat("Alive", (f'sum(max by (network) (bigbrotr_relays{{outcome="alive", {NETWORK}}}))', ""), "Relays of which a standing opinion says so.", colours=[("green", None)]),
        stat("Suspect", (f'sum(max by (network) (bigbrotr_relays{{outcome="suspect", {NETWORK}}}))', ""), "Relays in doubt."),
        stat("Down", (f'sum(max by (network) (bigbrotr_relays{{outcome="down", {NETWORK}}}))', ""), "Relays that enough vantages call down."),
        stat("Candidates", (f'sum(max by (network) (bigbrotr_candidates{{outcome="waiting", {NETWORK}}}))', ""), "URLs that may be relays."),
        stat("Breakers", (f"sum(max by (network) (bigbrotr_breakers{{{NETWORK}}}))", ""), "Networks and vantages that are out of reach.", colours=ZERO_IS_GOOD),
        stat("Checks that are well", ('sum(rate(bigbrotr_checks_total{outcome="ok"}[$__rate_interval])) / sum(rate(bigbrotr_checks_total[$__rate_interval]))', ""), "Share of all checks.", "percentunit"),
        row("Relays"),
        graph("By state", (f"sum by (outcome) ({state})", "{{outcome}}"), "Over all vantages (relay_liveness).", stack=True),
        graph("Alive, by network", (f'max by (network) (bigbrotr_relays{{outcome="alive", {NETWORK}}})', "{{network}}"), "Relays that are alive.", stack=True),
        graph("Candidates", (f"sum by (outcome) (max by (network, outcome) (bigbrotr_candidates{{{NETWORK}}}))", "{{outcome}}"), "URLs that may be relays, and those that were given up."),
        row("Looks"),
        graph("Checks", (rate("bigbrotr_checks_total", "kind"), "{{kind}}"), "Checks made per second, by kind.", "ops", stack=True),
        graph("Checks that are well, by kind", ('sum by (kind) (rate(bigbrotr_checks_total{outcome="ok"}[$__rate_interval])) / sum by (kind) (rate(bigbrotr_checks_total[$__rate_interval]))', "{{kind}}"), "Share of ok.", "percentunit"),
        graph("Checks by outcome", (rate("bigbrotr_checks_total", "outcome"), "{{outcome}}"), "Skipped: the look stopped earlier.", "ops", stack=True),
        graph("Our own way out", (rate("bigbrotr_egress_standings_total", "network, outcome", NETWORK), "{{network}} {{outcome}}"), "How it stood when a failed dial had to be judged. Unproved and sick count against no relay.", "ops"),
        row("Traffic"),
        graph("Received", (rate("bigbrotr_relay_received_bytes_total", "network", NETWORK), "{{network}}"), "Bytes per second from relays and sources.", "Bps", stack=True),
        graph("Sent", (rate("bigbrotr_relay_sent_bytes_total", "network", NETWORK), "{{network}}"), "Bytes per second to relays.", "Bps", stack=True),
        graph("Today", [(f"max by (network) (bigbrotr_network_today_bytes{{{NETWORK}}})", "{{network}}"), (f"max by (network) (bigbrotr_network_limit_bytes{{{NETWORK}}}) or max by (network) (bigbrotr_network_today_bytes{{{NETWORK}}}) * 0", "{{network}} limit")], "Bytes moved in this UTC day, and the limit after which syncing rests (0: there is none).", "bytes"),
        graph("Breakers that are not closed", (f"max by (network) (bigbrotr_breakers{{{NETWORK}}})", "{{network}}"), "Vantages from which the network is out of reach."),
        row("Telling others"),
        graph("Publications", ("max by (outcome) (bigbrotr_publications)", "{{outcome}}"), "Newest deliveries to publishing relays, by what became of them."),
        graph("Publishing relays out of reach", ("max(bigbrotr_publishing_relays_failing)", "relays"), "Those whose latest delivery failed as a whole."),
        graph("Alerts for the webhook", [("max(bigbrotr_relay_alerts_waiting)", "waiting"), ("max(bigbrotr_relay_alerts_failing)", "tried and failed")], "Changes of relays' states on their way."),
    ], [label_variable("network", "bigbrotr_network_permits", "network")])


def archive():
    proved = 'sum(max by (outcome) (bigbrotr_coverage_seconds{outcome=~"reconciled|finished|walked"})) / clamp_min(sum(max by (outcome) (bigbrotr_coverage_seconds)), 1)'
    return dashboard("bigbrotr-archive", "BigBrotr: archive", "What is held, with what proof, and how fresh the statistics are.", [
        stat("Events", ("max(bigbrotr_archive_events)", ""), "Archived events, as far as the rollups have counted."),
        stat("Observations", ("max(bigbrotr_archive_observations)", ""), "Which event was seen on which relay."),
        stat("Proved", (proved, ""), "Share of the timelines asked for that is held at grade walked or better.", "percentunit", decimals=2),
        stat("Of the disk budget", ("max(bigbrotr_archive_bytes) / max(bigbrotr_archive_limit_bytes) or vector(0)", ""), "At 90 % syncing rests; 0 also without a budget.", "percentunit", [("green", None), ("yellow", 0.8), ("red", 0.9)]),
        stat("Oldest view", ("max(bigbrotr_view_age_seconds)", ""), "Since its latest refresh.", "s", [("green", None), ("yellow", 3600), ("red", 7200)]),
        stat("Quarantined", ("max(bigbrotr_events_quarantined)", ""), "Events that verified and that the database refused.", colours=ZERO_IS_GOOD),
        row("Events"),
        graph("Received", (rate("bigbrotr_events_received_total", "outcome", 'outcome=~"new|known"'), "{{outcome}}"), "New ones, and those we had from elsewhere.", "ops", stack=True),
        graph("Observations stored", (rate("bigbrotr_observations_stored_total"), "new"), "New pairs of event and relay per second.", "ops"),
        graph("Not stored", (rate("bigbrotr_events_received_total", "outcome", 'outcome!~"new|known"'), "{{outcome}}"), "Refused, by reason, or of a class that is not kept.", "ops"),
        graph("Held", [("max(bigbrotr_archive_events)", "events"), ("max(bigbrotr_archive_observations)", "observations")], "As far as the rollups have counted."),
        row("Proof"),
        graph("Coverage by grade", ("max by (outcome) (bigbrotr_coverage_seconds)", "{{outcome}}"), "Seconds of timelines, all relays together. The first three are proof.", "s", stack=True),
        graph("Proved", (proved, "share"), "Reconciled, finished or walked, of all that was asked for.", "percentunit"),
        row("Disk"),
        graph("Size", [("max(bigbrotr_archive_bytes)", "database"), ("max(bigbrotr_archive_limit_bytes) or vector(0)", "budget")], "Size of the database and its budget (0: there is none).", "bytes"),
        graph("Growth", ("max(deriv(bigbrotr_archive_bytes[1h])) * 86400", "bytes a day"), "By the last hour.", "bytes", low=None),
        graph("Syncing rests", ("max(bigbrotr_archive_rests)", "rests"), "1 while the budget has it rest."),
        row("Statistics"),
        graph("Age of the views", [("max(bigbrotr_view_age_seconds)", "oldest view"), ("max(bigbrotr_rollup_backlog_age_seconds)", "oldest key to count")], "How old what readers see is.", "s"),
        graph("Keys to count", ("max(bigbrotr_rollup_backlog)", "keys"), "Logged by writers and not counted by a refresh."),
    ])


def database():
    return dashboard("bigbrotr-database", "BigBrotr: database", "PostgreSQL as its exporter and the fleet see it.", [
        stat("PostgreSQL", ("min(pg_up)", ""), "1: the exporter can log in.", colours=ZERO_IS_BAD),
        stat("Connections", ("sum(pg_stat_activity_count) / max(pg_settings_max_connections)", ""), "Of the server's limit.", "percentunit", [("green", None), ("yellow", 0.7), ("red", 0.85)]),
        stat("Oldest transaction", ("max(pg_stat_activity_max_tx_duration)", ""), "How long it has been open.", "s", [("green", None), ("yellow", 3600), ("red", 5400)]),
        stat("Cache hits", (f"sum(rate(pg_stat_database_blks_hit{{{DATABASE}}}[$__rate_interval])) / (sum(rate(pg_stat_database_blks_hit{{{DATABASE}}}[$__rate_interval])) + sum(rate(pg_stat_database_blks_read{{{DATABASE}}}[$__rate_interval])))", ""), "Blocks found in shared buffers.", "percentunit", decimals=2),
        stat("Size", (f"sum(pg_database_size_bytes{{{DATABASE}}})", ""), "Of the chosen databases.", "bytes"),
        stat("Deadlocks", (f"sum(pg_stat_database_deadlocks{{{DATABASE}}})", ""), "Since the statistics were reset; ours take locks in one order and have none.", colours=ZERO_IS_GOOD),
        row("Sessions"),
        graph("Connections by state", (f"sum by (state) (pg_stat_activity_count{{{DATABASE}}})", "{{state}}"), "Sessions of clients.", stack=True),
        graph("Oldest transaction by state", (f"max by (state) (pg_stat_activity_max_tx_duration{{{DATABASE}}})", "{{state}}"), "A long one holds a snapshot, and dead rows pile up.", "s"),
        graph("Locks", (f"sum by (mode) (pg_locks_count{{{DATABASE}}})", "{{mode}}"), "Locks held, by mode."),
        graph("The call of a worker", [(quantile(0.5, "bigbrotr_queue_exchange_seconds"), "p50"), (quantile(0.99, "bigbrotr_queue_exchange_seconds"), "p99")], "How long it takes to acknowledge and claim.", "s"),
        row("Work"),
        graph("Transactions", [(f"sum(rate(pg_stat_database_xact_commit{{{DATABASE}}}[$__rate_interval]))", "committed"), (f"sum(rate(pg_stat_database_xact_rollback{{{DATABASE}}}[$__rate_interval]))", "rolled back")], "Per second.", "ops"),
        graph("Rows written", [(f"sum(rate(pg_stat_database_tup_inserted{{{DATABASE}}}[$__rate_interval]))", "inserted"), (f"sum(rate(pg_stat_database_tup_updated{{{DATABASE}}}[$__rate_interval]))", "updated"), (f"sum(rate(pg_stat_database_tup_deleted{{{DATABASE}}}[$__rate_interval]))", "deleted")], "Per second.", "ops"),
        graph("Rows read", (f"sum(rate(pg_stat_database_tup_fetched{{{DATABASE}}}[$__rate_interval]))", "fetched"), "Per second, by index.", "ops"),
        graph("Blocks", [(f"sum(rate(pg_stat_database_blks_hit{{{DATABASE}}}[$__rate_interval]))", "from shared buffers"), (f"sum(rate(pg_stat_database_blks_read{{{DATABASE}}}[$__rate_interval]))", "from outside")], "Per second.", "ops"),
        graph("Temporary files", (f"sum(rate(pg_stat_database_temp_bytes{{{DATABASE}}}[$__rate_interval]))", "written"), "Sorts and hashes that did not fit into work_mem.", "Bps"),
        graph("Size", (f"max by (datname) (pg_database_size_bytes{{{DATABASE}}})", "{{datname}}"), "By database.", "bytes", stack=True),
        graph("Dead rows of the queue", ("max(bigbrotr_queue_dead_rows)", "rows"), "A saw is vacuum at work, a slope a held snapshot."),
        graph("Calls that failed", (rate("bigbrotr_queue_errors_total"), "queue loops"), "Database calls of workers' loops.", "ops"),
    ], [label_variable("database", "pg_database_size_bytes", "datname", "/^(?!template|postgres$).*/")])


def main():
    differ = []
    for made in [fleet(), queues(), relays(), archive(), database()]:
        path = FOLDER / f"{made['uid']}.json"
        text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
        if sys.argv[1:] == ["--check"]:
            if not path.exists() or path.read_text() != text:
                differ.append(path.name)
        else:
            FOLDER.mkdir(exist_ok=True)
            path.write_text(text)
    if differ:
        sys.exit(f"not as deploy/grafana/make.py makes them: {', '.join(differ)}")


if __name__ == "__main__":
    main()
