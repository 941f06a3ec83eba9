//! The one integration binary: a file per scenario. `cfg(test)` tells the lints that helpers are tests too.

#[cfg(test)]
mod alerts;
#[cfg(test)]
mod archive;
#[cfg(test)]
mod backup;
#[cfg(test)]
mod bent;
#[cfg(test)]
mod beside;
#[cfg(test)]
mod beyond;
#[cfg(test)]
mod board;
#[cfg(test)]
mod bounds;
#[cfg(test)]
mod brought;
#[cfg(test)]
mod caps;
#[cfg(test)]
mod chaos;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod compose;
#[cfg(test)]
mod database;
#[cfg(test)]
mod dense;
#[cfg(test)]
mod deploy;
#[cfg(test)]
mod discover;
#[cfg(test)]
mod docs;
#[cfg(test)]
mod doubt;
#[cfg(test)]
mod dump;
#[cfg(test)]
mod eighteen;
#[cfg(test)]
mod expiry;
#[cfg(test)]
mod factory;
#[cfg(test)]
mod figures;
#[cfg(test)]
mod fleet;
#[cfg(test)]
mod forgone;
#[cfg(test)]
mod geo;
#[cfg(test)]
mod gone;
#[cfg(test)]
mod health;
#[cfg(test)]
mod heard;
#[cfg(test)]
mod ingest;
#[cfg(test)]
mod jobs;
#[cfg(test)]
mod judge;
#[cfg(test)]
mod keep;
#[cfg(test)]
mod kept;
#[cfg(test)]
mod known;
#[cfg(test)]
mod latest;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod locks;
#[cfg(test)]
mod looks;
#[cfg(test)]
mod manners;
#[cfg(test)]
mod metrics;
#[cfg(test)]
mod model;
#[cfg(test)]
mod moment;
#[cfg(test)]
mod names;
#[cfg(test)]
mod narrowed;
#[cfg(test)]
mod nip05;
#[cfg(test)]
mod observe;
#[cfg(test)]
mod onion;
#[cfg(test)]
mod operate;
#[cfg(test)]
mod operator;
#[cfg(test)]
mod order;
#[cfg(test)]
mod orphans;
#[cfg(test)]
mod page;
#[cfg(test)]
mod pages;
#[cfg(test)]
mod politeness;
#[cfg(test)]
mod pooler;
#[cfg(test)]
mod programs;
#[cfg(test)]
mod proof;
#[cfg(test)]
mod proxy;
#[cfg(test)]
mod publish;
#[cfg(test)]
mod queue;
#[cfg(test)]
mod reconcile;
#[cfg(test)]
mod resume;
#[cfg(test)]
mod retention;
#[cfg(test)]
mod reviewed;
#[cfg(test)]
mod rollup;
#[cfg(test)]
mod rotate;
#[cfg(test)]
mod scene;
#[cfg(test)]
mod scheduler;
#[cfg(test)]
mod schema;
#[cfg(test)]
mod scripted;
#[cfg(test)]
mod settled;
#[cfg(test)]
mod silent;
#[cfg(test)]
mod skew;
#[cfg(test)]
mod socks;
#[cfg(test)]
mod spared;
#[cfg(test)]
mod speak;
#[cfg(test)]
mod specimens;
#[cfg(test)]
mod storm;
#[cfg(test)]
mod strangers;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tidy;
#[cfg(test)]
mod told;
#[cfg(test)]
mod transfer;
#[cfg(test)]
mod traps;
#[cfg(test)]
mod truth;
#[cfg(test)]
mod turns;
#[cfg(test)]
mod upgrade;
#[cfg(test)]
mod upgrade17;
#[cfg(test)]
mod upgrade28;
#[cfg(test)]
mod upgrade46;
#[cfg(test)]
mod upkeep;
#[cfg(test)]
mod uptime;
#[cfg(test)]
mod vantages;
#[cfg(test)]
mod views;
#[cfg(test)]
mod walked;
#[cfg(test)]
mod wanted;
#[cfg(test)]
mod watch;
#[cfg(test)]
mod wishes;
#[cfg(test)]
mod withheld;
#[cfg(test)]
mod written;
