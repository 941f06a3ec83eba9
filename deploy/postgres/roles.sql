-- Run by roles.sh as the superuser at every start; each statement may run again.
-- Passwords must not come into a log, not even that of a failed statement.
SET log_statement = 'none';
SET log_min_duration_statement = -1;
SET log_min_error_statement = 'panic';
SET client_min_messages = 'warning';
\set pgbouncer_password `cat /run/secrets/pgbouncer_password`
\set exporter_password `cat /run/secrets/exporter_password`

SELECT format('CREATE ROLE %I LOGIN', name)
FROM unnest(ARRAY['pgbouncer', 'exporter']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name)
\gexec
ALTER ROLE pgbouncer PASSWORD :'pgbouncer_password';
ALTER ROLE exporter PASSWORD :'exporter_password';
GRANT pg_monitor TO exporter;

-- The pooler asks here for the SCRAM verifier of who logs in; of superusers it learns nothing.
BEGIN;
CREATE SCHEMA IF NOT EXISTS pgbouncer;
REVOKE ALL ON SCHEMA pgbouncer FROM PUBLIC;
GRANT USAGE ON SCHEMA pgbouncer TO pgbouncer;
CREATE OR REPLACE FUNCTION pgbouncer.get_auth(p_user text) RETURNS TABLE (username text, password text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
AS $$
    SELECT rolname::text, rolpassword
    FROM pg_authid
    WHERE rolname = p_user AND rolcanlogin AND NOT rolsuper AND NOT rolreplication
      AND (rolvaliduntil IS NULL OR rolvaliduntil > now())
$$;
REVOKE ALL ON FUNCTION pgbouncer.get_auth(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION pgbouncer.get_auth(text) TO pgbouncer;
COMMIT;
