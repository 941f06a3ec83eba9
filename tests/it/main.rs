//! The one integration binary: a file per scenario. `cfg(test)` tells the lints that helpers are tests too.

#[cfg(test)]
mod archive;
#[cfg(test)]
mod chaos;
#[cfg(test)]
mod cli;
#[cfg(test)]
mod database;
#[cfg(test)]
mod docs;
#[cfg(test)]
mod factory;
#[cfg(test)]
mod fleet;
#[cfg(test)]
mod jobs;
#[cfg(test)]
mod looks;
#[cfg(test)]
mod model;
#[cfg(test)]
mod operate;
#[cfg(test)]
mod politeness;
#[cfg(test)]
mod programs;
#[cfg(test)]
mod proxy;
#[cfg(test)]
mod queue;
#[cfg(test)]
mod schema;
#[cfg(test)]
mod scripted;
#[cfg(test)]
mod speak;
#[cfg(test)]
mod support;
#[cfg(test)]
mod tidy;
