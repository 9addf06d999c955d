//! What a command runs with: its parameters, the connection (made at the first call), and where it writes.

use crate::api::Api;
use crate::args::ClientOptions;
use crate::command::Command;
use crate::failure::{self, Failure};
use crate::params::Params;
use crate::print::{self, Cell};
use crate::record::field::scalar;
use crate::record::lookup::Lookup;
use crate::record::{self, Class, Object};
use crate::stream::{self, Target};
use crate::transport::Endpoint;
use std::cell::{OnceCell, RefCell};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use tanada_xapi::{Ref, Value};

/// What the process was given besides its arguments.
pub struct Surroundings<'a> {
    /// The local server's socket.
    pub socket: PathBuf,
    pub input: &'a mut dyn BufRead,
    pub out: &'a mut dyn Write,
    pub err: &'a mut dyn Write,
}

pub struct Ctx<'a> {
    pub command: Command,
    pub params: Params,
    options: ClientOptions,
    socket: PathBuf,
    input: &'a mut dyn BufRead,
    out: &'a mut dyn Write,
    err: RefCell<&'a mut dyn Write>,
    api: OnceCell<Api>,
}

impl<'a> Ctx<'a> {
    pub fn new(command: Command, params: Params, options: ClientOptions, around: Surroundings<'a>) -> Ctx<'a> {
        let Surroundings { socket, input, out, err } = around;
        Ctx { command, params, options, socket, input, out, err: RefCell::new(err), api: OnceCell::new() }
    }

    pub fn api(&self) -> Result<&Api, Failure> {
        if let Some(api) = self.api.get() {
            return Ok(api);
        }
        let api = connect(&self.options, &self.socket, |text| self.complain(text))?;
        Ok(self.api.get_or_init(|| api))
    }

    pub fn call(&self, method: &str, params: Vec<Value>) -> Result<Value, Failure> {
        self.api()?.call(method, params)
    }

    pub fn is_minimal(&self) -> Result<bool, Failure> {
        self.params.flag("minimal")
    }

    /// Writes to stdout. A reader that went away ends the command.
    pub fn write(&mut self, text: &str) -> Result<(), Failure> {
        self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).map_err(|_| Failure::Reported)
    }

    pub fn line(&mut self, text: &str) -> Result<(), Failure> {
        self.write(&format!("{text}\n"))
    }

    pub fn records(&mut self, records: &[Vec<Cell>]) -> Result<(), Failure> {
        let text = print::records(records, self.is_minimal()?);
        self.write(&text)
    }

    /// The uuid of a new object.
    pub fn print_uuid(&mut self, class: &str, reference: &Value) -> Result<(), Failure> {
        let uuid = self.api()?.uuid(class, &Ref::from(scalar(reference)))?;
        self.line(&uuid)
    }

    /// Fetches into a new file, or to stdout where the name is empty.
    pub fn download(&mut self, target: &Target<'_>, filename: &str) -> Result<(), Failure> {
        self.api()?;
        match self.api.get() {
            Some(api) => stream::download(api, target, filename, &mut *self.out),
            None => Err(Failure::unexpected("no connection")),
        }
    }

    /// Asks for a `yes`; anything else is printed as an abort and answers false.
    pub fn confirm(&mut self) -> Result<bool, Failure> {
        self.line("Type 'yes' to continue")?;
        let mut answer = String::new();
        self.input.read_line(&mut answer).map_err(|e| Failure::cli(format!("Cannot read the answer: {e}")))?;
        if answer.trim().eq_ignore_ascii_case("yes") {
            return Ok(true);
        }
        self.line(&format!("Aborted (you typed: '{}')", answer.trim()))?;
        Ok(false)
    }

    /// The object that parameter `name` gives the uuid of.
    pub fn by_uuid_param(&self, name: &str, class: &str) -> Result<Ref, Failure> {
        self.api()?.by_uuid(class, self.params.need(name)?)
    }

    /// `Class.message(object of uuid=)`, printing nothing.
    pub fn message(&mut self, method: &str) -> Result<(), Failure> {
        let class = method.split('.').next().unwrap_or_default();
        let object = self.by_uuid_param("uuid", class)?;
        self.call(method, vec![Value::from(object)]).map(drop)
    }

    /// The same as a task.
    pub fn task(&mut self, method: &str, more: Vec<Value>) -> Result<Value, Failure> {
        let class = method.split('.').next().unwrap_or_default();
        let mut params = vec![Value::from(self.by_uuid_param("uuid", class)?)];
        params.extend(more);
        self.api()?.run(method, params, method)
    }

    pub fn cells(&self, class: &Class, object: &Object, names: &[&str]) -> Result<Vec<Cell>, Failure> {
        let fields: Vec<_> = class.fields.iter().filter(|field| names.contains(&field.name)).collect();
        record::cells(&Lookup::for_one(self.api()?), object, &fields, true)
    }

    /// The only pool there is.
    pub fn pool(&self) -> Result<Object, Failure> {
        let pools = self.api()?.all("pool")?;
        pools.into_iter().next().ok_or_else(|| Failure::unexpected("the server has no pool object"))
    }

    /// The pool's default SR, if it exists.
    pub fn default_sr(&self) -> Result<Option<Ref>, Failure> {
        let reference = Ref::from(self.pool()?.record.get("default_SR").map(scalar).unwrap_or_default());
        if reference.is_null() {
            return Ok(None);
        }
        Ok(self.api()?.record("SR", &reference)?.map(|_| reference))
    }

    /// Writes what went wrong to stderr.
    pub fn report(&mut self, failure: &Failure) {
        let lines = failure::lines(failure, |name, value| self.describe(name, value));
        for line in lines {
            self.complain(&line);
        }
        if self.options.debug_on_fail {
            self.complain(&format!("{failure:?}"));
        }
    }

    fn complain(&self, text: &str) {
        // There is nowhere left to complain.
        let _ = writeln!(self.err.borrow_mut(), "{text}");
    }

    /// Writes what a person should know to stderr; the command has done its work.
    pub fn remark(&mut self, text: &str) {
        // It is no failure where nobody reads it.
        self.complain(text);
    }

    pub fn summary(&self, failure: &Failure) -> String {
        failure::summary(failure, |name, value| self.describe(name, value))
    }

    /// A reference as `uuid (name-label)`; other values as they are.
    fn describe(&self, name: Option<&str>, value: &str) -> String {
        if !value.starts_with("OpaqueRef:") || Ref::from(value).is_null() {
            return value.to_owned();
        }
        let Some(api) = self.api.get() else { return value.to_owned() };
        const CLASSES: &[&str] = &["VM", "VDI", "SR", "VBD", "PBD", "host", "task", "VIF", "network", "pool", "VMSS"];
        let named = CLASSES.iter().filter(|class| name.is_some_and(|name| name.eq_ignore_ascii_case(class)));
        for class in named.chain(CLASSES) {
            if let Ok(Some(record)) = api.record(class, &Ref::from(value)) {
                let text = |field: &str| record.get(field).map(scalar).unwrap_or_default();
                let (uuid, label) = (text("uuid"), text("name_label"));
                return if label.is_empty() { uuid } else { format!("{uuid} ({label})") };
            }
        }
        value.to_owned()
    }

    /// Ends the session.
    pub fn close(self) {
        if let Some(api) = self.api.into_inner() {
            api.logout();
        }
    }
}

/// The local socket needs no password; everything else does. `remark` is told of a server that anybody could be.
fn connect(options: &ClientOptions, socket: &Path, remark: impl Fn(&str)) -> Result<Api, Failure> {
    let (mut user, mut password) = (options.username.clone(), options.password.clone());
    if let Some(file) = &options.password_file {
        let text = std::fs::read_to_string(file).map_err(|e| Failure::cli(format!("Cannot read {file}: {e}")))?;
        let mut lines = text.lines();
        user = lines.next().map(str::to_owned).or(user);
        password = lines.next().map(str::to_owned).or(password);
    }
    let endpoint = endpoint(options, socket);
    let is_local = matches!(endpoint, Endpoint::Unix(_));
    if !is_local && password.is_none() {
        return Err(Failure::NoCredentials);
    }
    match &endpoint {
        Endpoint::Tls { host, ca: None, .. } => remark(&format!(
            "The certificate of {host} is not checked: --ca (or XE_CA) names the file with the one to trust"
        )),
        Endpoint::Plain { .. } if options.ca.is_some() => {
            return Err(Failure::cli(
                "--nossl asks for plain HTTP, which has no certificates for --ca (or XE_CA) to vouch for",
            ));
        }
        _ => {}
    }
    Api::login(endpoint, user.as_deref().unwrap_or("root"), password.as_deref().unwrap_or_default(), options.debug)
}

fn endpoint(options: &ClientOptions, socket: &Path) -> Endpoint {
    let server = options.server.as_deref().unwrap_or("127.0.0.1");
    if server.starts_with('/') {
        return Endpoint::Unix(PathBuf::from(server));
    }
    let is_local = matches!(server, "127.0.0.1" | "localhost" | "::1");
    if is_local && options.port.is_none() && (options.server.is_none() || socket.exists()) {
        return Endpoint::Unix(socket.to_owned());
    }
    let host = server.to_owned();
    match options.no_tls {
        true => Endpoint::Plain { host, port: options.port.unwrap_or(80) },
        false => {
            Endpoint::Tls { host, port: options.port.unwrap_or(443), ca: options.ca.as_deref().map(PathBuf::from) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::endpoint;
    use crate::args::ClientOptions;
    use std::path::Path;

    #[test]
    fn the_local_socket_is_preferred_and_tls_is_the_rule() {
        let check = |server: Option<&str>, port, no_tls, expected: &str| {
            let options = ClientOptions { server: server.map(str::to_owned), port, no_tls, ..ClientOptions::default() };
            let endpoint = endpoint(&options, Path::new("/nowhere/xapi.sock"));
            assert_eq!(format!("{endpoint:?}"), expected);
        };
        check(None, None, false, r#"Unix("/nowhere/xapi.sock")"#);
        check(Some("/x/y"), None, false, r#"Unix("/x/y")"#);
        check(Some("h"), None, false, r#"Tls { host: "h", port: 443, ca: None }"#);
        check(Some("h"), None, true, r#"Plain { host: "h", port: 80 }"#);
        check(Some("localhost"), Some(8443), false, r#"Tls { host: "localhost", port: 8443, ca: None }"#);
        check(Some("localhost"), None, false, r#"Tls { host: "localhost", port: 443, ca: None }"#);
    }
}
