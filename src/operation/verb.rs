//! Verbs: the names of operations.

macro_rules! verbs {
    ($($verb:ident = $name:literal,)*) => {
        /// What an operation does, without its operands.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Verb {
            $(#[doc = concat!("`", $name, "`.")] $verb,)*
        }

        impl Verb {
            /// Every verb.
            pub const ALL: &[Self] = &[$(Self::$verb,)*];

            /// Returns the name used on the wire, in logs, in metrics and in the journal.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$verb => $name,)*
                }
            }
        }
    };
}

verbs! {
    List = "list",
    Info = "info",
    Status = "status",
    Version = "version",
    ConfigShow = "config_show",
    Default = "default",
    Ssh = "ssh",
    Logs = "logs",
    Run = "run",
    Push = "push",
    Pull = "pull",
    Shell = "shell",
    Create = "create",
    Import = "import",
    Start = "start",
    Stop = "stop",
    Restart = "restart",
    Delete = "delete",
    Rename = "rename",
    Clone = "clone",
    Export = "export",
    SetDefault = "set_default",
    ConfigSet = "config_set",
    ConfigAdd = "config_add",
    ConfigRemove = "config_remove",
    ConfigReset = "config_reset",
    StartAll = "start_all",
    StopAll = "stop_all",
    RestartAll = "restart_all",
    StartOrbstack = "start_orbstack",
    StopOrbstack = "stop_orbstack",
    RestartOrbstack = "restart_orbstack",
    UpdateOrbstack = "update_orbstack",
    ResetOrbstack = "reset_orbstack",
    Other = "other",
}

impl Verb {
    /// Returns the verb with this name; [`Verb::Other`] for a name that this version does not know.
    pub fn named(name: &str) -> Self {
        let found = Self::ALL.iter().find(|verb| verb.as_str() == name);
        found.copied().unwrap_or(Self::Other)
    }

    /// Returns whether an operation with this verb can be on so many machines.
    pub(super) fn takes(self, machines: usize) -> bool {
        match self {
            Self::Run
            | Self::Push
            | Self::Pull
            | Self::Shell
            | Self::Create
            | Self::Import
            | Self::Export => machines == 1,
            Self::Start | Self::Stop | Self::Restart | Self::Delete => machines >= 1,
            Self::Rename | Self::Clone => machines == 2,
            Self::SetDefault | Self::Info | Self::Logs => machines <= 1,
            _ => machines == 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_found_by_its_name() {
        for verb in Verb::ALL {
            assert_eq!(Verb::named(verb.as_str()), *verb);
        }
        assert_eq!(Verb::named("suspend"), Verb::Other);
    }
}
