-- Completes apalis.jobs and apalis.workers as apalis-postgres 1.0.0 creates them (ADR-001).
-- Idempotent; applied after every set-up, under an advisory lock. `apalis.jobs` holds live jobs only.

ALTER TABLE apalis.jobs
    ADD COLUMN IF NOT EXISTS kind text,
    ADD COLUMN IF NOT EXISTS network text,
    ADD COLUMN IF NOT EXISTS target text,
    ADD COLUMN IF NOT EXISTS due_at timestamptz,
    ADD COLUMN IF NOT EXISTS deadline_at timestamptz,
    ADD COLUMN IF NOT EXISTS run_deadline timestamptz,
    ADD COLUMN IF NOT EXISTS slack_s integer,
    ADD COLUMN IF NOT EXISTS timeout_s integer,
    ADD COLUMN IF NOT EXISTS enqueued_at timestamptz,
    ADD COLUMN IF NOT EXISTS class smallint NOT NULL DEFAULT 2,
    ADD COLUMN IF NOT EXISTS gate text,
    ADD COLUMN IF NOT EXISTS host text,
    ADD COLUMN IF NOT EXISTS cancel_why text,
    ADD COLUMN IF NOT EXISTS again_class smallint,
    ADD COLUMN IF NOT EXISTS permitted_at timestamptz;
COMMENT ON COLUMN apalis.jobs.kind IS 'Job kind: discover, validate, monitor, sync or refresh.';
COMMENT ON COLUMN apalis.jobs.network IS 'Network, or local.';
COMMENT ON COLUMN apalis.jobs.target IS 'Relay URL or task name; also the idempotency_key: one outstanding job per kind and target.';
COMMENT ON COLUMN apalis.jobs.due_at IS 'When the target was due.';
COMMENT ON COLUMN apalis.jobs.deadline_at IS 'due_at + slack: claims take the smallest.';
COMMENT ON COLUMN apalis.jobs.run_deadline IS 'When the running attempt is given up.';
COMMENT ON COLUMN apalis.jobs.slack_s IS 'Seconds of lateness without harm.';
COMMENT ON COLUMN apalis.jobs.timeout_s IS 'Seconds one attempt may run.';
COMMENT ON COLUMN apalis.jobs.enqueued_at IS 'When it was enqueued.';
COMMENT ON COLUMN apalis.jobs.class IS '0 run now, 1 new relays, 2 rechecks, 3 archive backfill.';
COMMENT ON COLUMN apalis.jobs.gate IS 'Where a pending job stands: ready to be claimed, behind others of its host, or later. Null while it runs.';
COMMENT ON COLUMN apalis.jobs.host IS 'host_state.host: what its host''s limits are counted by; null for local tasks.';
COMMENT ON COLUMN apalis.jobs.cancel_why IS 'Why an operator wants the running attempt stopped.';
COMMENT ON COLUMN apalis.jobs.again_class IS 'Class of what was asked for again while it ran.';
COMMENT ON COLUMN apalis.jobs.permitted_at IS 'When host_permit let the running attempt dial.';
-- Jobs of a version before had neither gate nor class: they are looked at as if their time had just come, and what set
-- the time of their target says how urgent they are.
UPDATE apalis.jobs j SET gate = CASE j.status WHEN 'Pending' THEN 'later' END, host = public.url_host(j.target),
    class = public.job_class(j.kind, coalesce((SELECT s.why FROM public.schedule s WHERE s.kind = j.kind AND s.target = j.target), ''))
WHERE j.kind IS NOT NULL
  AND ((j.status = 'Pending' AND j.gate IS NULL) OR (j.status = 'Running' AND j.network <> 'local' AND j.host IS NULL));

ALTER TABLE apalis.workers
    ADD COLUMN IF NOT EXISTS lease_until timestamptz,
    ADD COLUMN IF NOT EXISTS vantage text,
    ADD COLUMN IF NOT EXISTS version text,
    ADD COLUMN IF NOT EXISTS queues text[],
    ADD COLUMN IF NOT EXISTS slots integer,
    ADD COLUMN IF NOT EXISTS slots_of integer[],
    ADD COLUMN IF NOT EXISTS draining boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS listens boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN apalis.workers.lease_until IS 'The worker''s jobs are its own until then.';
COMMENT ON COLUMN apalis.workers.vantage IS 'Name of the place it observes from.';
COMMENT ON COLUMN apalis.workers.version IS 'Version of the program.';
COMMENT ON COLUMN apalis.workers.queues IS 'Queues it claims from.';
COMMENT ON COLUMN apalis.workers.slots IS 'Jobs it runs at once, all queues together.';
COMMENT ON COLUMN apalis.workers.slots_of IS 'Jobs it runs at once of each of its queues.';
COMMENT ON COLUMN apalis.workers.draining IS 'An operator wants it to claim nothing more.';
COMMENT ON COLUMN apalis.workers.listens IS 'It hears of new jobs over a direct connection.';

-- job_enqueue notifies once per call, and only where somebody listens: a notification per row would only take the commit lock.
DROP TRIGGER IF EXISTS notify_workers ON apalis.jobs;

DROP INDEX IF EXISTS apalis.bigbrotr_claim;
CREATE INDEX IF NOT EXISTS bigbrotr_ready ON apalis.jobs (job_type, class, deadline_at) WHERE gate = 'ready';
CREATE INDEX IF NOT EXISTS bigbrotr_ready_host ON apalis.jobs (host, job_type) WHERE gate = 'ready' AND host IS NOT NULL;
CREATE INDEX IF NOT EXISTS bigbrotr_later ON apalis.jobs (run_at) WHERE gate = 'later';
CREATE INDEX IF NOT EXISTS bigbrotr_host ON apalis.jobs (host, job_type, class, deadline_at) WHERE gate = 'host';
CREATE INDEX IF NOT EXISTS bigbrotr_host_now ON apalis.jobs (host) WHERE gate = 'host' AND class = 0;
CREATE INDEX IF NOT EXISTS bigbrotr_running ON apalis.jobs (lock_by) WHERE status = 'Running';
DROP INDEX IF EXISTS apalis.bigbrotr_running_host;
CREATE INDEX IF NOT EXISTS bigbrotr_running_block ON apalis.jobs ((public.host_block(host)), host) WHERE status = 'Running' AND host IS NOT NULL;
CREATE INDEX IF NOT EXISTS bigbrotr_cancel ON apalis.jobs (lock_by) WHERE cancel_why IS NOT NULL;
ALTER TABLE apalis.jobs SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500,
                             autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000, fillfactor = 70);
DROP INDEX IF EXISTS apalis.lidx;
DROP INDEX IF EXISTS apalis.idx_apalis_jobs_lock_by;
DROP INDEX IF EXISTS apalis.unique_job_id;
DROP INDEX IF EXISTS apalis.idx_apalis_jobs_fetch_partial;
