-- How often in a row something failed, for its breaker.
alter table tailrace.quotas add column failures int not null default 0;
