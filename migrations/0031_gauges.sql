-- What the leading scheduler shows of the whole fleet: one call every ten seconds that reads what is small, and one a
-- minute that reads a row per relay or per stretch of coverage. A gauge is named as the programs export it; one that a
-- program does not know is left out there, so that a newer database serves an older program.

CREATE FUNCTION fleet_gauges(p_now timestamptz DEFAULT now())
RETURNS TABLE (gauge text, kind text, network text, word text, value bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100 SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY
    SELECT 'queue_dead_jobs', q.kind, q.network, '', coalesce(s.dead, 0)
    FROM queue_list() q
    LEFT JOIN (SELECT x.kind, x.network, sum(x.dead)::bigint AS dead FROM queue_sample x
               WHERE x.sampled_at > p_now - interval '1 hour' GROUP BY 1, 2) s ON s.kind = q.kind AND s.network = q.network;
    RETURN QUERY
    SELECT 'queue_held', q.kind, q.network, '', count(p.queue)
    FROM queue_list() q LEFT JOIN queue_pause p ON p.queue = q.kind || '.' || q.network GROUP BY q.kind, q.network;
    RETURN QUERY
    SELECT 'queue_workers', q.kind, q.network, '', count(w.id)
    FROM queue_list() q
    LEFT JOIN apalis.workers w ON w.lease_until > p_now AND NOT w.draining AND q.kind || '.' || q.network = ANY (w.queues)
    GROUP BY q.kind, q.network;
    RETURN QUERY SELECT 'queue_dead_rows', '', '', '', pg_stat_get_dead_tuples('apalis.jobs'::regclass);
    RETURN QUERY
    SELECT 'workers', '', '', s.word, count(w.id)
    FROM (VALUES ('working', false), ('draining', true)) s(word, draining)
    LEFT JOIN apalis.workers w ON w.worker_type = 'bigbrotr' AND w.lease_until > p_now AND w.draining = s.draining
    GROUP BY s.word;
    RETURN QUERY
    SELECT g.gauge, '', '', '', g.value
    FROM autoscale_desired a
    CROSS JOIN LATERAL (VALUES ('autoscale_desired_workers', a.desired::bigint), ('autoscale_backlog_seconds', coalesce(a.backlog_s, 0)::bigint)) g(gauge, value);
    RETURN QUERY
    SELECT g.gauge, '', l.network, '', g.value
    FROM network_limit l
    CROSS JOIN LATERAL (VALUES
        ('network_permits', l.permits::bigint),
        ('network_permits_lent', (SELECT coalesce(sum(n.permits), 0)::bigint FROM network_lease n JOIN apalis.workers w ON w.id = n.worker_id
                                  WHERE n.network = l.network AND w.lease_until > p_now)),
        ('network_today_bytes', coalesce((SELECT u.bytes FROM network_usage u WHERE u.network = l.network AND u.day = (p_now AT TIME ZONE 'UTC')::date), 0)),
        ('network_limit_bytes', l.bytes_per_day),
        ('breakers', (SELECT count(*) FROM breaker b WHERE b.network = l.network))) g(gauge, value)
    WHERE g.value IS NOT NULL;
    RETURN QUERY
    SELECT 'view_age_seconds', '', '', '', extract(epoch FROM p_now - min(v.refreshed_at))::bigint FROM view_state v HAVING count(*) > 0;
    RETURN QUERY SELECT 'archive_bytes', '', '', '', pg_database_size(current_database());
    RETURN QUERY
    SELECT g.gauge, '', '', '', g.value
    FROM (SELECT count(*) AS waiting, count(*) FILTER (WHERE a.tries > 0) AS failing FROM relay_alert a WHERE a.due_at IS NOT NULL) c
    CROSS JOIN LATERAL (VALUES ('relay_alerts_waiting', c.waiting), ('relay_alerts_failing', c.failing)) g(gauge, value);
    RETURN QUERY
    SELECT 'publishing_relays_failing', '', '', '', count(*) FROM publication_relay p WHERE p.failures > 0;
END $$;
COMMENT ON FUNCTION fleet_gauges IS 'What the leading scheduler shows of the fleet every ten seconds, by the names of its metrics: queues, workers, networks, views. Reads small tables, and live jobs by their partial indexes.';

CREATE FUNCTION archive_gauges()
RETURNS TABLE (gauge text, kind text, network text, word text, value bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 50 SET search_path = public, pg_temp SET jit = off
AS $$
BEGIN
    RETURN QUERY
    SELECT 'relays', '', n.network, s.word, coalesce(l.relays, 0)
    FROM network_limit n CROSS JOIN (VALUES ('alive'), ('suspect'), ('down'), ('unchecked')) s(word)
    LEFT JOIN (SELECT x.network, x.state, count(*) AS relays FROM relay_liveness x GROUP BY 1, 2) l ON l.network = n.network AND l.state = s.word;
    RETURN QUERY
    SELECT 'candidates', '', n.network, s.word, coalesce(CASE s.word WHEN 'waiting' THEN c.waiting ELSE c.tombstoned END, 0)
    FROM network_limit n CROSS JOIN (VALUES ('waiting'), ('tombstoned')) s(word)
    LEFT JOIN (SELECT x.network, count(*) FILTER (WHERE x.tombstoned_at IS NULL) AS waiting, count(x.tombstoned_at) AS tombstoned
               FROM candidate x GROUP BY 1) c ON c.network = n.network;
    RETURN QUERY
    SELECT 'archive_events', '', '', '', coalesce((SELECT t.events FROM rollup_total t), 0);
    RETURN QUERY
    SELECT 'archive_observations', '', '', '', coalesce(sum(r.events), 0)::bigint FROM rollup_relay r;
    RETURN QUERY
    SELECT 'coverage_seconds', '', '', g.word, coalesce(c.seconds, 0)
    FROM (VALUES ('reconciled'), ('finished'), ('walked'), ('partial'), ('refused'), ('unknown')) g(word)
    LEFT JOIN (SELECT x.grade, sum(least(x.until_at, n.now) - x.since_at + 1)::bigint AS seconds
               FROM coverage x CROSS JOIN (SELECT extract(epoch FROM now())::bigint AS now) n
               WHERE x.since_at <= n.now GROUP BY 1) c ON c.grade = g.word;
    RETURN QUERY SELECT 'events_quarantined', '', '', '', count(*) FROM event_quarantine;
    RETURN QUERY
    SELECT 'publications', '', '', s.word, coalesce(d.n, 0)
    FROM (VALUES ('accepted'), ('refused'), ('waiting')) s(word)
    LEFT JOIN (SELECT x.state, count(*) AS n FROM publication_delivery x GROUP BY 1) d ON d.state = s.word;
END $$;
COMMENT ON FUNCTION archive_gauges IS 'What the leading scheduler shows of relays and the archive once a minute, by the names of its metrics. Reads a row per relay, candidate, stretch of coverage and delivery, and no event.';
