//! From settings to what the parts need.

use std::{path::Path, sync::Arc};

use muster_config::{KeyRequest, Rate as ConfiguredRate};
use muster_proto::{bucket::Rate, paths};

use crate::{
    engine::Setup,
    flow::{BreakerRule, Limits, Route},
    loud::Loud,
    process::command_line::CommandLineError,
    registrar::{Registrar, rules_of},
    source::{Sources, Surroundings},
};

/// Everything that a change of the configuration changes.
pub fn setup(settings: &KeyRequest, home: &Path, loud: &Arc<Loud>) -> Result<Setup, CommandLineError> {
    let surroundings = Surroundings {
        home: home.to_owned(),
        loud: Arc::clone(loud),
        max_output: usize::try_from(settings.max_output).unwrap_or(usize::MAX),
    };
    let sources = Sources::new(settings, &surroundings)?;
    Ok(Setup {
        limits: limits(settings, sources.route()),
        registrar: Registrar::new(paths::AUTH_SOCKET.into(), rules_of(settings.force_insert)),
        sources,
    })
}

fn limits(settings: &KeyRequest, sources: Route) -> Limits {
    Limits {
        threads: settings.threads.into(),
        queue: usize::try_from(settings.queue_size).unwrap_or(usize::MAX),
        per_text: rate(settings.rate_per_address),
        total: rate(settings.rate_total),
        negative_cache: settings.negative_cache,
        deadline: settings.deadline,
        breaker: BreakerRule {
            failures: settings.breaker_failures,
            pause: settings.breaker_pause,
        },
        sources,
    }
}

fn rate(rate: ConfiguredRate) -> Rate {
    Rate {
        per_second: rate.per_second,
        burst: rate.burst.max(1),
    }
}
