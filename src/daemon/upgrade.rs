//! The steward: notices that the program was replaced, lets the new one prove itself, and hands over when nobody would miss us.
//!
//! The order of handing over: the door is held and connections come to rest; the file is looked at once more; the dispatcher stops if
//! it is quiet. Until that last step all can be taken back, and connections go on as if nothing had been.

use std::sync::Arc;

use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::causes::with_causes;
use crate::clock::Moment;
use crate::dispatcher::Dispatcher;
use crate::rpc::listen::Door;
use crate::rpc::server;
use crate::sys::FileStamp;
use crate::upgrade::{Glance, Program, Step, Unproven, Watch, prove};

/// What the steward works with.
pub(super) struct Steward {
    pub(super) program: Program,
    pub(super) glance: Arc<Glance>,
    /// Somebody asks to look, also at what was refused.
    pub(super) asked: Arc<Notify>,
    pub(super) dispatcher: Dispatcher,
    pub(super) door: mpsc::Sender<Door>,
    pub(super) told: watch::Sender<Option<server::Upgrade>>,
}

impl Steward {
    /// Watches until the dispatcher is gone; says whether it stopped so that the new program may take over.
    pub(super) async fn watch(self) -> bool {
        let mut watch = Watch::new(self.program.stamp);
        // The file that was pending was not there when it mattered: the next look tells more.
        let mut is_away = false;
        loop {
            let pending = watch.pending().filter(|_| !is_away);
            tokio::select! {
                biased;
                () = self.dispatcher.gone() => return false,
                () = self.glance.differs() => is_away = false,
                () = self.asked.notified() => {
                    is_away = false;
                    watch.try_again();
                }
                Some(()) = self.dispatcher.until_quiet(), if pending.is_some() => {
                    if let Some(stamp) = pending {
                        match self.hand_over(stamp).await {
                            HandedOver::Yes => return true,
                            HandedOver::NotNow => {}
                            HandedOver::NotThere => {
                                is_away = true;
                                self.glance.forget();
                            }
                        }
                    }
                }
            }
            self.look(&mut watch).await;
        }
    }

    /// Looks at the file until there is nothing new to it.
    async fn look(&self, watch: &mut Watch) {
        loop {
            match watch.saw(FileStamp::of(&self.program.path)) {
                Step::Nothing => return,
                Step::Withdraw => {
                    tracing::info!("the program that runs is back in its place; nothing takes over");
                    self.told.send_replace(None);
                }
                Step::Prove(stamp) => {
                    let noticed = Moment::now();
                    let proof = prove(&self.program).await;
                    if FileStamp::of(&self.program.path) != Some(stamp) {
                        // It is still being written, and what was tried is not what is there.
                        continue;
                    }
                    if matches!(proof, Err(Unproven::Busy)) {
                        // Whoever writes it changes nothing any more when he closes it, so nothing else would make us look.
                        watch.try_again();
                        self.glance.forget();
                        return;
                    }
                    watch.proved(proof.is_ok());
                    let path = self.program.path.display();
                    match &proof {
                        Ok(version) => tracing::info!(
                            program = %path,
                            version,
                            "the program was replaced; the new one takes over when nothing runs that would be lost"
                        ),
                        Err(error) => tracing::warn!(
                            program = %path,
                            error = with_causes(error),
                            "the program was replaced by one that does not prove itself; going on with the old one"
                        ),
                    }
                    let proof = proof.map_err(|error| with_causes(&error));
                    self.told.send_replace(Some(server::Upgrade { noticed, proof }));
                }
            }
        }
    }

    /// Lets the new program take over, if this is the moment. If it is not, everything goes on.
    async fn hand_over(&self, stamp: FileStamp) -> HandedOver {
        let (held, holds) = oneshot::channel();
        // Whoever serves the door is gone when the daemon stops.
        if self.door.send(Door::Hold(held)).await.is_err() || holds.await.is_err() {
            return HandedOver::NotNow;
        }
        let is_there = FileStamp::of(&self.program.path) == Some(stamp);
        // What has been asked for meanwhile is with the dispatcher, whose answer is final.
        if is_there && self.dispatcher.stop_if_quiet().await {
            return HandedOver::Yes;
        }
        let _ = self.door.send(Door::Open).await;
        if is_there {
            HandedOver::NotNow
        } else {
            HandedOver::NotThere
        }
    }
}

/// What came of a try to hand over.
enum HandedOver {
    /// The dispatcher stops.
    Yes,
    /// Somebody would have missed us.
    NotNow,
    /// The file is not the one that is to take over.
    NotThere,
}
