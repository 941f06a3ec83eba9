-- Partitions, retention of history, and who may do what.

CREATE FUNCTION partition_ensure(p_table text, p_from bigint, p_to bigint, p_suffix text)
RETURNS boolean
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_part text := p_table || '_' || p_suffix;
    v_column text := CASE p_table WHEN 'relay_check' THEN 'checked_at' ELSE 'event_key' END;
BEGIN
    IF p_table NOT IN ('event', 'event_relay', 'relay_check') THEN
        RAISE EXCEPTION 'table % has no numeric partitions', p_table USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF to_regclass('public.' || quote_ident(v_part)) IS NOT NULL THEN RETURN false; END IF;
    IF NOT pg_try_advisory_xact_lock(7303) THEN RETURN false; END IF;
    EXECUTE format('CREATE TABLE public.%I (LIKE public.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', v_part, p_table);
    -- Rows that arrived before their range was made move over, in the same transaction.
    EXECUTE format('LOCK TABLE public.%I IN ACCESS EXCLUSIVE MODE', p_table || '_default');
    EXECUTE format('WITH moved AS (DELETE FROM public.%I WHERE %I >= %s AND %I < %s RETURNING *) INSERT INTO public.%I SELECT * FROM moved',
                   p_table || '_default', v_column, p_from, v_column, p_to, v_part);
    EXECUTE format('ALTER TABLE public.%I ATTACH PARTITION public.%I FOR VALUES FROM (%s) TO (%s)', p_table, v_part, p_from, p_to);
    RETURN true;
END $$;
COMMENT ON FUNCTION partition_ensure IS 'Makes one range partition of event, event_relay (by event_key) or relay_check (by second) and moves what the default partition holds of it; false if it was there.';

CREATE FUNCTION partition_maintain(p_since bigint, p_limit integer DEFAULT 10000, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    m timestamptz;
    d timestamptz;
    lo bigint;
    hi bigint;
    n integer := 0;
    v_part text;
BEGIN
    -- Months of the archive: from the first month wanted (never before Nostr) to two ahead.
    m := date_trunc('month', greatest(to_timestamp(p_since), TIMESTAMPTZ '2020-11-01 00:00:00+00') AT TIME ZONE 'UTC') AT TIME ZONE 'UTC';
    WHILE m < p_now + interval '2 months' AND n < p_limit LOOP
        lo := extract(epoch FROM m)::bigint;
        hi := extract(epoch FROM (m AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC')::bigint;
        n := n + partition_ensure('event', lo << 31, hi << 31, to_char(m AT TIME ZONE 'UTC', 'YYYYMM'))::integer;
        n := n + partition_ensure('event_relay', lo << 31, hi << 31, to_char(m AT TIME ZONE 'UTC', 'YYYYMM'))::integer;
        m := (m AT TIME ZONE 'UTC' + interval '1 month') AT TIME ZONE 'UTC';
    END LOOP;
    -- Days of the check series and of the job history: yesterday, in case nobody maintained, and two ahead.
    FOR i IN -1 .. 2 LOOP
        EXIT WHEN n >= p_limit;
        d := (date_trunc('day', p_now AT TIME ZONE 'UTC') + make_interval(days => i)) AT TIME ZONE 'UTC';
        lo := extract(epoch FROM d)::bigint;
        n := n + partition_ensure('relay_check', lo, lo + 86400, to_char(d AT TIME ZONE 'UTC', 'YYYYMMDD'))::integer;
        v_part := 'job_history_' || to_char(d AT TIME ZONE 'UTC', 'YYYYMMDD');
        IF to_regclass('public.' || v_part) IS NULL AND pg_try_advisory_xact_lock(7303) THEN
            EXECUTE format('CREATE TABLE public.%I (LIKE public.job_history INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', v_part);
            LOCK TABLE job_history_default IN ACCESS EXCLUSIVE MODE;
            EXECUTE format('WITH moved AS (DELETE FROM job_history_default WHERE finished_at >= %L AND finished_at < %L RETURNING *) INSERT INTO public.%I SELECT * FROM moved',
                           d, d + interval '1 day', v_part);
            EXECUTE format('ALTER TABLE job_history ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)', v_part, d, d + interval '1 day');
            n := n + 1;
        END IF;
    END LOOP;
    RETURN n;
END $$;
COMMENT ON FUNCTION partition_maintain IS 'Makes at most p_limit partitions (or the few of one month): those of the coming days and months, and those back to p_since (Unix seconds); returns how many were made.';

CREATE FUNCTION job_retire(p_keep_days integer, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_part text;
    n integer := 0;
BEGIN
    IF p_keep_days < 1 THEN
        RAISE EXCEPTION 'at least one day is kept' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR v_part IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'public.job_history'::regclass AND c.relname ~ '^job_history_[0-9]{8}$'
          AND to_date(right(c.relname, 8), 'YYYYMMDD') < (p_now AT TIME ZONE 'UTC')::date - p_keep_days
        ORDER BY 1
    LOOP
        EXECUTE format('DROP TABLE public.%I', v_part);
        n := n + 1;
    END LOOP;
    DELETE FROM job_history_default h WHERE h.finished_at < p_now - make_interval(days => p_keep_days + 1);
    RETURN n;
END $$;
COMMENT ON FUNCTION job_retire IS 'Drops whole days of job history older than p_keep_days; returns how many days.';

CREATE FUNCTION check_retire(p_keep_days integer, p_now timestamptz DEFAULT now())
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_part text;
    n integer := 0;
BEGIN
    IF p_keep_days < 1 THEN
        RAISE EXCEPTION 'at least one day is kept' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR v_part IN
        SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'public.relay_check'::regclass AND c.relname ~ '^relay_check_[0-9]{8}$'
          AND to_date(right(c.relname, 8), 'YYYYMMDD') < (p_now AT TIME ZONE 'UTC')::date - p_keep_days
        ORDER BY 1
    LOOP
        EXECUTE format('DROP TABLE public.%I', v_part);
        n := n + 1;
    END LOOP;
    DELETE FROM relay_check_default c
    WHERE c.checked_at < extract(epoch FROM p_now)::bigint - (p_keep_days + 1) * 86400::bigint;
    RETURN n;
END $$;
COMMENT ON FUNCTION check_retire IS 'Drops whole days of the check series older than p_keep_days; returns how many days.';

CREATE FUNCTION statistics_maintain()
RETURNS integer
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = public, pg_temp
AS $$
DECLARE
    v_part text;
    n integer := 0;
BEGIN
    FOR v_part IN
        SELECT format('%I.%I', st.schemaname, st.relname) FROM pg_inherits i JOIN pg_stat_user_tables st ON st.relid = i.inhrelid
        WHERE i.inhparent IN ('public.event'::regclass, 'public.event_relay'::regclass)
          AND st.n_live_tup = 0 AND pg_relation_size(st.relid) > 0
          AND coalesce(st.last_analyze, st.last_autoanalyze) IS NULL
        ORDER BY 1 LIMIT 20
    LOOP
        EXECUTE 'ANALYZE ' || v_part;
        n := n + 1;
    END LOOP;
    RETURN n;
END $$;
COMMENT ON FUNCTION statistics_maintain IS 'Counts again what the server lost its counters of (it does after a crash); returns how many partitions.';

CREATE FUNCTION roles_grant(p_prefix text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = public, pg_temp
AS $$
DECLARE
    f record;
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA public, apalis TO %I, %I', p_prefix || '_reader', p_prefix || '_admin');
    EXECUTE format('GRANT USAGE ON SCHEMA public TO %I, %I', p_prefix || '_writer', p_prefix || '_refresher');
    EXECUTE format('GRANT ALL ON ALL TABLES IN SCHEMA public, apalis TO %I', p_prefix || '_admin');
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA public, apalis TO %I', p_prefix || '_reader');
    EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO %I', p_prefix || '_reader');
    FOR f IN
        SELECT p.oid::regprocedure AS signature, p.proname AS name, p.provolatile AS volatility
        FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e')
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f.signature);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', f.signature, p_prefix || '_admin');
        IF f.name NOT IN ('roles_grant', 'partition_ensure') THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', f.signature, p_prefix || '_writer');
        END IF;
        IF f.name LIKE '%\_refresh' THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', f.signature, p_prefix || '_refresher');
        END IF;
        IF f.volatility <> 'v' THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO %I', f.signature, p_prefix || '_reader');
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION roles_grant IS 'Gives the four roles what they may do: writer EXECUTE and nothing else, refresher the refresh functions, reader SELECT and the reading functions.';

-- Changing partitions takes locks that everything else waits behind: rather not now than in the way.
ALTER FUNCTION partition_ensure SET lock_timeout = '1s';
ALTER FUNCTION partition_maintain SET lock_timeout = '1s';
ALTER FUNCTION job_retire SET lock_timeout = '1s';
ALTER FUNCTION check_retire SET lock_timeout = '1s';
ALTER FUNCTION statistics_maintain SET lock_timeout = '1s';

-- Compiling plans over many partitions costs a hundred times what it saves (measured: 4.6 s against 22 ms).
DO $jit$
DECLARE f regprocedure;
BEGIN
    FOR f IN
        SELECT p.oid::regprocedure FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
        WHERE p.pronamespace = 'public'::regnamespace AND l.lanname = 'plpgsql' AND p.prosecdef
    LOOP
        EXECUTE format('ALTER FUNCTION %s SET jit = off', f);
    END LOOP;
END $jit$;
