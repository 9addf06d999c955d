//! The handlers by the name of their message.

use std::collections::HashMap;

use tanada_xapi::classes;

use crate::context::{Handler, Handlers};

/// Every message that has a body of its own, beside the implicit ones.
#[derive(Default)]
pub struct Methods {
    handlers: HashMap<&'static str, Handler>,
}

impl Methods {
    /// Later entries take the place of earlier ones. A name that the class table does not know is refused.
    pub fn new(handlers: Handlers) -> anyhow::Result<Methods> {
        let mut methods = Methods::default();
        for (name, handler) in handlers {
            let known = name.split_once('.').and_then(|(class, message)| classes::class(class)?.method(message));
            anyhow::ensure!(known.is_some(), "a handler is registered for {name}, which no class declares");
            methods.handlers.insert(name, handler);
        }
        Ok(methods)
    }

    pub fn get(&self, name: &str) -> Option<Handler> {
        self.handlers.get(name).copied()
    }

    pub fn has(&self, name: &str) -> bool {
        self.handlers.contains_key(name)
    }
}
