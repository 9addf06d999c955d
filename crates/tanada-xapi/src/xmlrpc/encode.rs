use crate::error::{ApiError, ApiResult};
use crate::value::Value;

const HEAD: &str = "<?xml version=\"1.0\"?>\n";

/// One `<value>` element.
pub fn encode_value(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value);
    out
}

/// Appends one `<value>` element.
pub fn write_value(out: &mut String, value: &Value) {
    out.push_str("<value>");
    match value {
        Value::Void => {}
        Value::Nil => out.push_str("<nil/>"),
        Value::String(s) => write_text(out, s),
        Value::Int(n) => out.push_str(&n.to_string()),
        Value::I4(n) => element(out, "i4", &n.to_string()),
        Value::Bool(b) => element(out, "boolean", if *b { "1" } else { "0" }),
        Value::Float(f) => element(out, "double", &format!("{f:?}")),
        Value::DateTime(t) => element(out, "dateTime.iso8601", &t.to_string()),
        Value::Set(items) => {
            out.push_str("<array><data>");
            items.iter().for_each(|item| write_value(out, item));
            out.push_str("</data></array>");
        }
        Value::Map(map) => {
            out.push_str("<struct>");
            for (key, value) in map {
                write_member(out, key, |out| write_value(out, value));
            }
            out.push_str("</struct>");
        }
    }
    out.push_str("</value>");
}

/// A `methodCall` with positional parameters.
pub fn encode_call(method: &str, params: &[Value]) -> String {
    let mut out = String::from(HEAD);
    out.push_str("<methodCall><methodName>");
    write_text(&mut out, method);
    out.push_str("</methodName><params>");
    for param in params {
        out.push_str("<param>");
        write_value(&mut out, param);
        out.push_str("</param>");
    }
    out.push_str("</params></methodCall>");
    out
}

/// A `methodResponse` with the `Status` envelope.
pub fn encode_response(result: &ApiResult<Value>) -> String {
    response(|out| {
        out.push_str("<value><struct>");
        match result {
            Ok(value) => {
                write_member(out, "Status", |out| write_value(out, &Value::from("Success")));
                write_member(out, "Value", |out| write_value(out, value));
            }
            Err(error) => write_failure(out, error),
        }
        out.push_str("</struct></value>");
    })
}

/// A `methodResponse` that holds the bare value: `system.listMethods` answers so.
pub fn encode_bare_response(value: &Value) -> String {
    response(|out| write_value(out, value))
}

fn response(body: impl FnOnce(&mut String)) -> String {
    let mut out = String::from(HEAD);
    out.push_str("<methodResponse><params><param>");
    body(&mut out);
    out.push_str("</param></params></methodResponse>");
    out
}

fn write_failure(out: &mut String, error: &ApiError) {
    write_member(out, "Status", |out| write_value(out, &Value::from("Failure")));
    write_member(out, "ErrorDescription", |out| write_value(out, &Value::from(error.to_list())));
}

fn write_member(out: &mut String, name: &str, value: impl FnOnce(&mut String)) {
    out.push_str("<member><name>");
    write_text(out, name);
    out.push_str("</name>");
    value(out);
    out.push_str("</member>");
}

fn element(out: &mut String, name: &str, text: &str) {
    out.push('<');
    out.push_str(name);
    out.push('>');
    out.push_str(text);
    out.push_str("</");
    out.push_str(name);
    out.push('>');
}

fn write_text(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            // A bare CR would be read back as LF.
            '\r' => out.push_str("&#13;"),
            '\t' | '\n' => out.push(c),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => {}
            _ => out.push(c),
        }
    }
}
