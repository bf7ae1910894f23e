//! Where the proxies' passes run, and how that is settled where it is left open.

use super::chooser::Chooser;
use std::time::Duration;

/// Where the proxies' passes run in relation to each other and to the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// [`InTurn`](Self::InTurn) or [`SideBySide`](Self::SideBySide), whichever measures faster for the batch at hand.
    #[default]
    Auto,
    /// [`SideBySide`](Self::SideBySide), or both begun with the host's step where the engine says when that begins
    /// ([`Runner::start`](super::Runner::start)), whichever makes its steps faster as a whole.
    AutoEarly,
    /// One after the other on the caller's thread: each may use all cores.
    InTurn,
    /// At once, after the host: the tuned proxy on the caller's thread, the untuned on another, each with half of the
    /// cores.
    SideBySide,
    /// Both on threads of their own, so that the caller can do something else between start and finish: best where the
    /// proxies have cores or a device of their own.
    Together,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    InTurn,
    SideBySide,
    Early,
}

/// The placement, and the way that the step at hand goes.
pub(super) struct Place {
    placement: Placement,
    chooser: Chooser,
    way: Way,
}

impl Place {
    pub(super) fn new(placement: Placement) -> Self {
        // A whole step has more noise in it than a round of the proxies.
        let trials = if placement == Placement::AutoEarly { 15 } else { 5 };
        let way = match placement {
            Placement::Auto | Placement::InTurn => Way::InTurn,
            Placement::AutoEarly | Placement::SideBySide => Way::SideBySide,
            Placement::Together => Way::Early,
        };
        Self { placement, chooser: Chooser::new(trials), way }
    }

    pub(super) fn placement(&self) -> Placement {
        self.placement
    }

    /// The ways to choose from.
    fn ways(&self) -> Option<[Way; 2]> {
        match self.placement {
            Placement::Auto => Some([Way::InTurn, Way::SideBySide]),
            Placement::AutoEarly => Some([Way::SideBySide, Way::Early]),
            _ => None,
        }
    }

    /// Settles the way of a step of about so many positions.
    pub(super) fn begin(&mut self, positions: usize) {
        if let Some(ways) = self.ways() {
            self.way = ways[self.chooser.way(positions)];
        }
    }

    /// How long it took.
    pub(super) fn took(&mut self, positions: usize, time: Duration) {
        let way = self.ways().and_then(|ways| ways.iter().position(|&way| way == self.way));
        if let Some(way) = way {
            self.chooser.record(positions, way, time);
        }
    }

    /// Whether the two proxies run at the same time.
    pub(super) fn is_side_by_side(&self) -> bool {
        self.way != Way::InTurn
    }

    /// Whether both run on threads of their own.
    pub(super) fn is_early(&self) -> bool {
        self.way == Way::Early
    }
}
