use quick_xml::events::Event;
use quick_xml::reader::Reader;

use crate::error::{ApiError, ApiResult};
use crate::value::{DateTime, Map, Value};

/// Bounds on what one document may make us build. The caller bounds its size in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Nested arrays and structs.
    pub depth: usize,
    /// All values together, at every depth.
    pub values: usize,
}

impl Default for Limits {
    /// Enough for the records of some ten thousand objects in one reply.
    fn default() -> Limits {
        Limits { depth: 32, values: 2_000_000 }
    }
}

/// Why a document is not the XML-RPC that was asked for; the text names the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(String);

fn wrong<T>(text: impl Into<String>) -> Result<T, DecodeError> {
    Err(DecodeError(text.into()))
}

/// A decoded `methodCall`.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    pub method: String,
    pub params: Vec<Value>,
}

/// A document that is one `<value>` element.
pub fn decode_value(xml: &str) -> Result<Value, DecodeError> {
    decode_value_within(xml, Limits::default())
}

pub fn decode_value_within(xml: &str, limits: Limits) -> Result<Value, DecodeError> {
    let mut parser = Parser::new(xml, limits);
    parser.open("value")?;
    let value = parser.value(0)?;
    parser.end_of_document()?;
    Ok(value)
}

pub fn decode_call(xml: &str) -> Result<Call, DecodeError> {
    let mut parser = Parser::new(xml, Limits::default());
    parser.open("methodCall")?;
    parser.open("methodName")?;
    let method = parser.text_until_close("methodName")?.trim().to_owned();
    let mut params = Vec::new();
    if parser.open_or_close("params", "methodCall")? {
        while parser.open_or_close("param", "params")? {
            parser.open("value")?;
            params.push(parser.value(0)?);
            parser.close("param")?;
        }
        parser.close("methodCall")?;
    }
    parser.end_of_document()?;
    Ok(Call { method, params })
}

/// The result in a `methodResponse`: taken out of the `Status` envelope when there is one, else as it is.
/// A `<fault>` becomes an [`ApiError`] with code `FAULT`.
pub fn decode_response(xml: &str) -> Result<ApiResult<Value>, DecodeError> {
    let mut parser = Parser::new(xml, Limits::default());
    parser.open("methodResponse")?;
    let fault = match parser.next_markup()? {
        Markup::Open(name) if name == "params" => false,
        Markup::Open(name) if name == "fault" => true,
        other => return wrong(format!("{other} where <params> or <fault> was expected")),
    };
    if !fault {
        parser.open("param")?;
    }
    parser.open("value")?;
    let value = parser.value(0)?;
    if fault {
        let text = |key| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let code = value.get("faultCode").and_then(Value::as_int).unwrap_or_default().to_string();
        return Ok(Err(ApiError::new("FAULT", vec![code, text("faultString")])));
    }
    parser.close("param")?;
    parser.close("params")?;
    parser.close("methodResponse")?;
    unwrap_envelope(value)
}

fn unwrap_envelope(value: Value) -> Result<ApiResult<Value>, DecodeError> {
    let Value::Map(mut map) = value else { return Ok(Ok(value)) };
    match map.get("Status").and_then(Value::as_str) {
        Some("Success") => match map.remove("Value") {
            Some(value) => Ok(Ok(value)),
            None => wrong("a reply with Status Success has no Value"),
        },
        Some("Failure") => {
            let list = map.get("ErrorDescription").and_then(Value::as_set);
            let Some(list) = list else { return wrong("a reply with Status Failure has no ErrorDescription") };
            let list = list.iter().map(|v| v.as_str().unwrap_or_default().to_owned()).collect();
            Ok(Err(ApiError::from_list(list)))
        }
        Some(other) => wrong(format!("a reply has Status {other:?}; expected Success or Failure")),
        None => Ok(Ok(Value::Map(map))),
    }
}

/// The next tag, text between tags being white space.
enum Markup {
    Open(String),
    Close(String),
    End,
}

impl std::fmt::Display for Markup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Markup::Open(name) => write!(f, "<{name}>"),
            Markup::Close(name) => write!(f, "</{name}>"),
            Markup::End => f.write_str("the end of the document"),
        }
    }
}

struct Parser<'a> {
    reader: Reader<&'a [u8]>,
    limits: Limits,
    values: usize,
}

impl<'a> Parser<'a> {
    fn new(xml: &'a str, limits: Limits) -> Parser<'a> {
        let mut reader = Reader::from_str(xml);
        reader.config_mut().expand_empty_elements = true;
        Parser { reader, limits, values: 0 }
    }

    /// Text up to the next tag, and that tag. Entities come as events of their own, so text arrives in pieces.
    fn text_and_markup(&mut self) -> Result<(String, Markup), DecodeError> {
        let mut text = String::new();
        loop {
            let at = self.reader.buffer_position();
            let event = self.reader.read_event().map_err(|e| DecodeError(format!("at byte {at}: {e}")))?;
            match event {
                Event::Text(piece) => text.push_str(&piece.xml10_content()),
                Event::CData(piece) => text.push_str(&piece.xml10_content()),
                Event::GeneralRef(entity) => text.push(resolve(&entity, at)?),
                Event::Start(tag) => return Ok((text, Markup::Open(tag.name().as_ref().to_owned()))),
                Event::End(tag) => return Ok((text, Markup::Close(tag.name().as_ref().to_owned()))),
                Event::Eof => return Ok((text, Markup::End)),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
                Event::DocType(_) => return wrong(format!("at byte {at}: a document type is not allowed")),
                Event::Empty(_) => return wrong(format!("at byte {at}: unexpected empty element")),
            }
        }
    }

    fn next_markup(&mut self) -> Result<Markup, DecodeError> {
        let (text, markup) = self.text_and_markup()?;
        if !text.trim().is_empty() {
            let shown: String = text.trim().chars().take(40).collect();
            return wrong(format!("text {shown:?} before {markup}, where only tags may stand"));
        }
        Ok(markup)
    }

    fn open(&mut self, name: &str) -> Result<(), DecodeError> {
        match self.next_markup()? {
            Markup::Open(found) if found == name => Ok(()),
            other => wrong(format!("{other} where <{name}> was expected")),
        }
    }

    fn close(&mut self, name: &str) -> Result<(), DecodeError> {
        match self.next_markup()? {
            Markup::Close(found) if found == name => Ok(()),
            other => wrong(format!("{other} where </{name}> was expected")),
        }
    }

    /// `true` for `<inner>`, `false` for `</outer>`.
    fn open_or_close(&mut self, inner: &str, outer: &str) -> Result<bool, DecodeError> {
        match self.next_markup()? {
            Markup::Open(found) if found == inner => Ok(true),
            Markup::Close(found) if found == outer => Ok(false),
            other => wrong(format!("{other} where <{inner}> or </{outer}> was expected")),
        }
    }

    fn end_of_document(&mut self) -> Result<(), DecodeError> {
        match self.next_markup()? {
            Markup::End => Ok(()),
            other => wrong(format!("{other} after the end of the document")),
        }
    }

    fn text_until_close(&mut self, name: &str) -> Result<String, DecodeError> {
        match self.text_and_markup()? {
            (text, Markup::Close(found)) if found == name => Ok(text),
            (_, other) => wrong(format!("{other} where the text of <{name}> was expected")),
        }
    }

    /// The value whose `<value>` has just been read, up to and with its `</value>`.
    fn value(&mut self, depth: usize) -> Result<Value, DecodeError> {
        self.values += 1;
        if self.values > self.limits.values {
            return wrong(format!("more than {} values", self.limits.values));
        }
        if depth > self.limits.depth {
            return wrong(format!("values nested deeper than {}", self.limits.depth));
        }
        let (text, markup) = self.text_and_markup()?;
        let kind = match markup {
            Markup::Close(name) if name == "value" => return Ok(Value::String(text)),
            Markup::Open(kind) if text.trim().is_empty() => kind,
            other => return wrong(format!("{other} inside the text of a <value>")),
        };
        let value = self.typed(&kind, depth)?;
        self.close("value")?;
        Ok(value)
    }

    fn typed(&mut self, kind: &str, depth: usize) -> Result<Value, DecodeError> {
        match kind {
            "array" => return self.array(depth),
            "struct" => return self.structure(depth),
            _ => {}
        }
        let text = self.text_until_close(kind)?;
        let bare = text.trim();
        let value = match kind {
            "string" => return Ok(Value::String(text)),
            "int" | "i4" | "i8" => bare.parse().ok().map(Value::Int),
            "boolean" => match bare {
                "1" | "true" => Some(Value::Bool(true)),
                "0" | "false" => Some(Value::Bool(false)),
                _ => None,
            },
            "double" => bare.parse().ok().map(Value::Float),
            "dateTime.iso8601" => DateTime::parse(bare).map(Value::DateTime),
            "nil" | "ex:nil" => Some(Value::Nil),
            _ => return wrong(format!("<{kind}> is not a type of value")),
        };
        let shown: String = text.chars().take(40).collect();
        value.ok_or_else(|| DecodeError(format!("{shown:?} is not a {kind}")))
    }

    fn array(&mut self, depth: usize) -> Result<Value, DecodeError> {
        self.open("data")?;
        let mut items = Vec::new();
        while self.open_or_close("value", "data")? {
            items.push(self.value(depth + 1)?);
        }
        self.close("array")?;
        Ok(Value::Set(items))
    }

    fn structure(&mut self, depth: usize) -> Result<Value, DecodeError> {
        let mut map = Map::new();
        while self.open_or_close("member", "struct")? {
            self.open("name")?;
            let name = self.text_until_close("name")?;
            self.open("value")?;
            let value = self.value(depth + 1)?;
            self.close("member")?;
            map.insert(name, value);
        }
        Ok(Value::Map(map))
    }
}

fn resolve(entity: &quick_xml::events::BytesRef<'_>, at: u64) -> Result<char, DecodeError> {
    let resolved = entity.resolve_char_ref().map_err(|e| DecodeError(format!("at byte {at}: {e}")))?;
    if let Some(c) = resolved {
        return Ok(c);
    }
    let name = entity.borrow().into_inner();
    match name.as_ref() {
        "amp" => Ok('&'),
        "lt" => Ok('<'),
        "gt" => Ok('>'),
        "quot" => Ok('"'),
        "apos" => Ok('\''),
        other => wrong(format!("at byte {at}: unknown entity &{other};")),
    }
}
