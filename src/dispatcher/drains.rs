//! Callers that wait until a drain is complete.

use tokio::sync::oneshot;

use crate::scheduler::Target;

use super::views::QueueView;

/// Replies to drains. Each is kept until its target is idle or its caller has stopped waiting, and is then given out once.
#[derive(Default)]
pub(super) struct Drains(Vec<(Target, oneshot::Sender<QueueView>)>);

impl Drains {
    /// Keeps a reply until `target` is idle.
    pub(super) fn wait(&mut self, target: Target, reply: oneshot::Sender<QueueView>) {
        self.0.push((target, reply));
    }

    /// Removes the replies whose target is idle, and those whose caller has stopped waiting.
    pub(super) fn take_complete(
        &mut self,
        is_idle: impl Fn(&Target) -> bool,
    ) -> Vec<oneshot::Sender<QueueView>> {
        let is_complete =
            |(target, reply): &mut (Target, oneshot::Sender<_>)| reply.is_closed() || is_idle(target);
        let complete = self.0.extract_if(.., is_complete);
        complete.map(|(_, reply)| reply).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::Lane;

    #[test]
    fn reply_is_kept_until_its_target_is_idle_or_its_caller_is_gone() {
        let web = Target::Lane(Lane::Machine("web".parse().expect("a valid name")));
        let mut drains = Drains::default();
        let (replies, answers): (Vec<_>, Vec<_>) = (0..3).map(|_| oneshot::channel::<QueueView>()).unzip();
        let mut answers = answers.into_iter();
        for (target, reply) in [&web, &Target::All, &Target::All].into_iter().zip(replies) {
            drains.wait(target.clone(), reply);
        }
        assert_eq!(drains.take_complete(|_| false).len(), 0);
        let mut of_web = answers.next().expect("three drains");
        for reply in drains.take_complete(|target| *target == web) {
            reply.send(QueueView::default()).expect("the caller waits");
        }
        assert!(of_web.try_recv().is_ok());
        drop(answers.next());
        assert_eq!(drains.take_complete(|_| false).len(), 1, "its caller is gone");
        assert_eq!(drains.take_complete(|_| true).len(), 1);
        assert_eq!(drains.take_complete(|_| true).len(), 0, "each is given out once");
    }
}
