-- One step more that is nobody's to call by itself.

CREATE OR REPLACE FUNCTION roles_grant(p_prefix text) RETURNS void
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
        -- Steps of other functions, which hold the locks for them, are nobody's to call by themselves.
        IF f.name IN ('roles_grant', 'partition_ensure', 'job_lose', 'job_hold', 'network_borrow', 'job_admit', 'operation_note', 'schedule_move',
                      'event_remove', 'event_strip', 'event_lay', 'coverage_lock', 'coverage_clip', 'rollup_stage', 'rollup_fold', 'rollup_mend', 'rollup_mend_versions', 'rollup_mend_far',
                      'rollup_subtract', 'month_hold') THEN
            EXECUTE format('REVOKE ALL ON FUNCTION %s FROM %I', f.signature, p_prefix || '_writer');
        ELSE
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
