-- Who may do what. The collector appends and cannot read results; the worker cannot change raw; the reader only reads.

grant usage on schema tailrace to tailrace_collector, tailrace_worker, tailrace_operator, tailrace_reader;
revoke execute on all functions in schema tailrace from public;

grant select, insert on tailrace.raw_records to tailrace_collector;
grant select, insert, update on tailrace.sources, tailrace.cursors, tailrace.coverage, tailrace.runs, tailrace.chunks, tailrace.quotas, tailrace.workers to tailrace_collector;
grant select on tailrace.versions, tailrace.pipelines to tailrace_collector;
grant select, insert on tailrace.jobs to tailrace_collector;
grant select on tailrace.backfill_progress, tailrace.source_silence, tailrace.queue_depth, tailrace.queue_lag, tailrace.source_lag, tailrace.source_gaps, tailrace.coverage, tailrace.xmin_holders to tailrace_collector;
grant execute on all functions in schema tailrace to tailrace_worker, tailrace_operator, tailrace_collector, tailrace_reader;
revoke execute on function tailrace.register_version, tailrace.swap_live, tailrace.move_open_work, tailrace.rescue, tailrace.move_leftovers from tailrace_collector, tailrace_reader;
revoke execute on function tailrace.open_run, tailrace.advance_run, tailrace.slice_range from tailrace_reader;

grant select on all tables in schema tailrace to tailrace_worker, tailrace_operator, tailrace_reader;
grant insert, update, delete on tailrace.jobs to tailrace_worker;
grant insert on tailrace.results, tailrace.settled, tailrace.effects, tailrace.delivery_attempts to tailrace_worker;
grant insert, update on tailrace.deliveries, tailrace.quotas, tailrace.workers, tailrace.runs to tailrace_worker;

grant insert on tailrace.effects, tailrace.delivery_attempts, tailrace.reviews, tailrace.record_sets, tailrace.record_set_members to tailrace_operator;
grant insert, update on tailrace.deliveries, tailrace.quotas, tailrace.runs, tailrace.sources, tailrace.workers to tailrace_operator;
grant update, delete on tailrace.jobs to tailrace_operator;
grant insert on tailrace.jobs to tailrace_operator;
grant delete on tailrace.budgets to tailrace_operator;
grant usage on all sequences in schema tailrace to tailrace_worker, tailrace_operator, tailrace_collector;
