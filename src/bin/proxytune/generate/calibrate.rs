//! `generate --alpha auto`.

use crate::progress::Progress;
use proxytune::config::Config;
use proxytune::decode::Models;
use proxytune::eval::{self, Setup};
use proxytune::{Error, Result};
use std::ops::ControlFlow;

/// Tokens of the windows that the text is cut into, where contexts hold as many.
const WINDOW: usize = 512;

/// The weight under which the shifted host predicts a text best; says on stderr which and how well.
pub fn calibrate(config: &Config, models: &Models, text: &str) -> Result<f32> {
    let Models { host, proxies } = models;
    let all = proxies.iter().flatten().map(|(model, _)| model).chain([host]);
    let contexts = [config.host.ctx, config.proxy_tuning.ctx].into_iter().filter(|&ctx| ctx != 0);
    let context = all.map(|model| model.trained_context()).chain(contexts).min().unwrap_or(WINDOW);
    let models = Models { host: host.clone(), proxies: proxies.clone() };
    let mut setup = Setup { config: config.clone(), models, direct: None, alphas: Vec::new() };
    let mut bar = Progress::new("{msg} {bar:30} {pos}/{len}  {left}");
    // One token is the beginning's.
    let window = WINDOW.min(context.saturating_sub(1));
    let metric = eval::calibrate(&mut setup, text, window, &mut |progress| {
        bar.set(progress.done, progress.total, &format!("calibrating {}", progress.unit));
        if crate::interrupted() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    bar.clear();
    let best = metric.best().ok_or(Error::Interrupted)?;
    anstream::eprintln!(
        "alpha {}: {} {} on the calibration text, the host alone {}",
        best.alpha,
        metric.figure(best.score),
        metric.unit_in_words(),
        metric.figure(metric.host)
    );
    Ok(best.alpha)
}
