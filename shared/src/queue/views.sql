-- What operators may rely on, over tables that may change. Idempotent; applied after tables.sql. Each answers from
-- partial indexes over live rows, and from the samples of the leading scheduler: cheap enough to poll every second.
-- Replaced in their place, so that views of operators on them stay.

CREATE OR REPLACE VIEW public.queue_depth AS
WITH ahead AS (
    SELECT s.kind, s.network, s.scheduled FROM public.queue_sample s
    WHERE s.sampled_at = (SELECT max(x.sampled_at) FROM public.queue_sample x WHERE x.scheduled IS NOT NULL) AND s.scheduled IS NOT NULL
)
SELECT c.kind, c.network, c.due, coalesce(a.scheduled, 0) AS waiting, c.running, c.oldest_due_at, p.mode AS held
FROM public.queue_count() c
LEFT JOIN ahead a ON a.kind = c.kind AND a.network = c.network
LEFT JOIN public.queue_pause p ON p.queue = c.kind || '.' || c.network;
COMMENT ON VIEW public.queue_depth IS 'Live jobs per queue: due and running exactly, waiting (scheduled ahead) as counted within the last minute by the leading scheduler; held: pause, drain or both.';

CREATE OR REPLACE VIEW public.jobs_running AS
SELECT j.id AS job_id, j.kind, j.network, j.target, j.attempts AS attempt, j.lock_by AS worker_id, j.lock_at AS started_at,
       j.run_deadline, w.lease_until, j.host, j.class, j.cancel_why
FROM apalis.jobs j JOIN apalis.workers w ON w.id = j.lock_by
WHERE j.status = 'Running' AND j.kind IS NOT NULL;
COMMENT ON VIEW public.jobs_running IS 'Jobs that run: whose, since when, until when at most, and until when their worker''s lease stands.';

CREATE OR REPLACE VIEW public.workers AS
SELECT w.id AS worker_id, w.vantage, w.version, w.started_at, w.last_seen, w.lease_until, w.lease_until > now() AS live, w.draining, w.listens,
       w.slots, (SELECT count(*) FROM apalis.jobs j WHERE j.lock_by = w.id AND j.status = 'Running') AS running, w.queues, w.slots_of
FROM apalis.workers w WHERE w.worker_type = 'bigbrotr';
COMMENT ON VIEW public.workers IS 'Worker processes, those of the last hour included: where they are, what they serve, how many slots are taken.';

CREATE OR REPLACE VIEW public.relay_due AS
SELECT s.target AS relay_url, s.kind, s.network, s.due_at, greatest(date_part('epoch', now() - s.due_at), 0) AS overdue_s,
       s.slack_s, s.why, public.job_class(s.kind, s.why) AS class,
       (SELECT CASE WHEN j.status = 'Running' THEN 'running' ELSE j.gate END FROM apalis.jobs j
        WHERE j.job_type = s.kind || '.' || s.network AND j.idempotency_key = s.target) AS job
-- Kinds for the key of one relay, networks for the index in the order of due_at.
FROM public.schedule s WHERE s.kind IN ('validate', 'monitor', 'sync') AND s.network <> 'local';
COMMENT ON VIEW public.relay_due IS 'When each relay and candidate is next due for each kind of job, what set that time, and where its outstanding job stands. Cheap for one relay, and in the order of due_at; overdue_s is reckoned for every row.';

CREATE OR REPLACE VIEW public.autoscale_desired AS
WITH queue AS (
    -- Of a crowd on one machine only as many count as may run there at once.
    SELECT q.kind, q.network, c.due - coalesce(h.jobs - least(h.jobs, h.hosts * (SELECT f.host_jobs FROM public.fleet_limit f)), 0) AS due, c.running,
           coalesce(s.avg_s, CASE q.kind WHEN 'discover' THEN 1 WHEN 'validate' THEN 10 WHEN 'monitor' THEN 10 WHEN 'sync' THEN 60 ELSE 30 END) AS avg_s,
           coalesce(w.slots, CASE q.kind WHEN 'validate' THEN 64 WHEN 'monitor' THEN 64 WHEN 'sync' THEN 16 ELSE 1 END) AS slots,
           l.permits,
           -- Nothing that more workers could help: held, out of reach from everywhere, or its traffic used up.
           coalesce(p.mode IN ('pause', 'both'), false)
           OR (EXISTS (SELECT FROM public.breaker b WHERE b.network = q.network AND b.until_at > now())
               AND NOT EXISTS (SELECT FROM apalis.workers v WHERE v.lease_until > now() AND q.kind || '.' || q.network = ANY (v.queues)
                               AND NOT EXISTS (SELECT FROM public.breaker b WHERE b.network = q.network AND b.vantage = v.vantage AND b.until_at > now())))
           OR (q.kind = 'sync' AND coalesce(u.bytes >= l.bytes_per_day, false)) AS stuck
    FROM public.queue_list() q
    JOIN public.queue_count() c ON c.kind = q.kind AND c.network = q.network
    LEFT JOIN public.crowd_count() h ON h.kind = q.kind AND h.network = q.network
    LEFT JOIN public.queue_pause p ON p.queue = q.kind || '.' || q.network
    LEFT JOIN (SELECT x.kind, x.network, sum(x.run_s) / nullif(sum(x.complete + x.dead), 0) AS avg_s FROM public.queue_sample x
               WHERE x.sampled_at > now() - interval '10 minutes' GROUP BY 1, 2) s ON s.kind = q.kind AND s.network = q.network
    LEFT JOIN (SELECT u.queue, avg(u.slots) AS slots FROM apalis.workers w CROSS JOIN LATERAL unnest(w.queues, w.slots_of) u(queue, slots)
               WHERE w.lease_until > now() AND u.slots > 0 GROUP BY 1) w ON w.queue = q.kind || '.' || q.network
    LEFT JOIN public.network_limit l ON l.network = q.network
    LEFT JOIN public.network_usage u ON u.network = q.network AND u.day = (now() AT TIME ZONE 'UTC')::date
), need AS (
    SELECT n.network, sum(n.due + n.running) AS live, sum(n.running) AS running, bool_and(n.stuck) FILTER (WHERE n.due + n.running > 0) AS stuck,
           sum(CASE WHEN n.stuck THEN 0 ELSE (n.due + n.running) * n.avg_s END) AS backlog_s,
           -- Workers that would drain it within five minutes.
           sum(CASE WHEN n.stuck THEN 0 ELSE (n.due + n.running) * n.avg_s / n.slots / 300 END) AS share,
           -- More than the network's permits can use is no help, whichever kinds use them.
           max(n.permits) / nullif(sum(CASE WHEN n.stuck OR n.due + n.running = 0 THEN 0 ELSE n.slots END), 0)::numeric AS most
    FROM queue n GROUP BY n.network
)
SELECT CASE WHEN sum(n.live) = 0 THEN 0 ELSE greatest(ceil(sum(least(n.share, coalesce(n.most, n.share)))), CASE WHEN sum(n.running) > 0 THEN 1 ELSE 0 END) END AS desired,
       sum(n.backlog_s)::double precision AS backlog_s,
       CASE WHEN sum(n.live) = 0 THEN 'nothing to do'
            WHEN bool_and(n.stuck) FILTER (WHERE n.live > 0) THEN 'queues are paused, out of reach or out of traffic'
            WHEN bool_or(n.share >= n.most) FILTER (WHERE n.backlog_s > 0) THEN 'the permits of a network'
            ELSE 'workers' END AS binding
FROM need n;
COMMENT ON VIEW public.autoscale_desired IS 'How many workers would drain what is due within five minutes: sum over the queues of (due + running) x average seconds / slots per worker / 300 s, up to what each network''s permits can use; queues that are paused, behind open breakers of every vantage, or out of the day''s traffic count nothing, and of a crowd on one machine only what may run there; at least 1 while anything runs. binding: what limits.';
