//! orbd: one small daemon per user through which every `orbctl` invocation goes.
