//! Generates the published description, `proto/openrpc.json`, from the methods, the types and the error table.
//!
//! The document is OpenRPC 1.3 with JSON Schema draft 7. It depends on the code alone: the same build writes the same bytes. Three
//! extensions cover what OpenRPC cannot express: `x-notification` and `x-unsubscribe` of a subscription, and `x-notifications`, which
//! belong to no request.

use schemars::generate::{Contract, SchemaSettings};
use schemars::{Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::errors::ErrorKind;
use super::methods::{Description, PROTOCOL_VERSION, descriptions};
use super::types::{Closing, Observed};

/// Prefix of references to schemas.
const SCHEMAS: &str = "#/components/schemas/";

/// Name of the schema of [`Observed`].
const OBSERVED: &str = "Observed";

/// Returns the whole document.
pub fn document() -> Value {
    let mut schemas = Schemas::new();
    let methods: Vec<Value> = descriptions()
        .iter()
        .map(|description| method(description, &mut schemas))
        .collect();
    let closing = schemas.answer(SchemaGenerator::subschema_for::<Closing>);
    let errors: Map<String, Value> = ErrorKind::ALL
        .iter()
        .map(|kind| (kind.as_str().to_owned(), error(*kind)))
        .collect();
    json!({
        "openrpc": "1.3.2",
        "info": {
            "title": "orbd",
            "version": format!("{PROTOCOL_VERSION}.0.0"),
            "description": "A per-user daemon that runs every orbctl invocation: it queues them, shares equal reads, \
                            caches answers and records durations. \
                            The major version is the protocol version that `daemon.hello` compares.",
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "servers": [{
            "name": "socket",
            "url": "unix:~/.orbd/orbd.sock",
            "description": "$ORBD_SOCKET, else ~/.orbd/orbd.sock; JSON lines or HTTP, selected by the first bytes.",
        }],
        "methods": methods,
        "x-notifications": [{
            "name": Closing::NOTIFICATION,
            "summary": "The last message on a connection of JSON lines that the daemon closes for an upgrade.",
            "params": closing,
            "example": { "jsonrpc": "2.0", "method": Closing::NOTIFICATION, "params": Closing { requests_read: 7 } },
        }],
        "components": { "schemas": schemas.take(), "errors": errors },
    })
}

/// Returns the errors that a method may answer with, except those that every request may get: `parse_error`, `invalid_request`,
/// `method_not_found`, `too_many_connections` and `overloaded`.
pub fn errors_of(method: &str) -> Vec<ErrorKind> {
    use ErrorKind as E;
    /// Errors of every method that creates a job or reads the inventory.
    const JOB: [ErrorKind; 9] = [
        E::QueueFull,
        E::Draining,
        E::JobCancelled,
        E::DeadlineExceeded,
        E::OrbctlUnavailable,
        E::OrbctlFailed,
        E::OrbctlKilled,
        E::OrbctlOutputUnreadable,
        E::OrbctlUnhealthy,
    ];
    let own: &[ErrorKind] = match method {
        "daemon.hello" => &[E::ProtocolMismatch],
        "daemon.reload" => &[E::ConfigInvalid],
        "daemon.info" | "daemon.stop" | "cache.status" | "cache.invalidate" | "job.list"
        | "metrics.counters" | "queue.status" | "queue.pause" | "queue.resume" | "queue.drain"
        | "machine.list" | "machine.default" | "machine.ssh" | "orbstack.status" | "orbstack.version"
        | "config.show" | "config.get" | "lease.read" => &[],
        "events.subscribe" => &[E::Draining],
        "metrics.summary" | "metrics.history" => &[E::StoreUnavailable],
        "job.get" | "job.wait" | "job.output" | "job.input" | "job.cancel" | "job.follow"
        | "lease.release" => &[E::JobNotFound],
        "machine.info" => &[E::MachineNotFound],
        "machine.logs" => &[E::MachineNotFound, E::MachineWrongState],
        "machine.run" | "machine.run_follow" => {
            &[E::MachineNotFound, E::MachineWrongState, E::JobInterrupted]
        }
        "machine.create" => &[E::MachineExists, E::OutcomeUnknown],
        "machine.start" | "machine.stop" | "machine.restart" | "machine.delete" => {
            &[E::MachineNotFound, E::MachineWrongState, E::OutcomeUnknown]
        }
        "machine.rename" | "machine.clone" => &[
            E::MachineNotFound,
            E::MachineExists,
            E::MachineWrongState,
            E::OutcomeUnknown,
        ],
        "machine.set_default" | "config.set" | "config.add" | "config.remove" => {
            &[E::MachineNotFound, E::OutcomeUnknown]
        }
        "machine.start_all" | "machine.stop_all" | "orbstack.start" | "orbstack.stop" | "config.reset" => {
            &[E::OutcomeUnknown]
        }
        "lease.acquire" => &[
            E::MachineNotFound,
            E::MachineExists,
            E::JobInterrupted,
            E::OutcomeUnknown,
        ],
        other => unreachable!("{other} is in the table; a test visits every method"),
    };
    let makes_job = ["machine.", "orbstack.", "config.", "lease.acquire", "lease.read"]
        .iter()
        .any(|prefix| method.starts_with(prefix));
    let shared: &[ErrorKind] = if makes_job { &JOB } else { &[] };
    let may = |kind: &ErrorKind| {
        matches!(kind, E::InvalidParams | E::Internal) || own.contains(kind) || shared.contains(kind)
    };
    ErrorKind::ALL.into_iter().filter(may).collect()
}

fn error(kind: ErrorKind) -> Value {
    json!({
        "code": kind.code(),
        "message": kind.meaning(),
        "data": { "kind": kind.as_str(), "retryable": kind.is_retryable() },
    })
}

fn method(description: &Description, schemas: &mut Schemas) -> Value {
    let (group, _) = description.name.split_once('.').unwrap_or((description.name, ""));
    let errors: Vec<Value> = errors_of(description.name)
        .iter()
        .map(|kind| json!({ "$ref": format!("#/components/errors/{}", kind.as_str()) }))
        .collect();
    let answer = schemas.answer(description.answer);
    let mut method = json!({
        "name": description.name,
        "summary": description.summary,
        "tags": [{ "name": group }],
        "paramStructure": "by-name",
        "params": schemas.params(description.params),
        "errors": errors,
    });
    match description.subscription {
        None => method["result"] = json!({ "name": "answer", "schema": answer }),
        Some((notification, unsubscribe)) => {
            let id = json!({ "type": "integer", "minimum": 0, "description": "Id of the subscription." });
            method["result"] = json!({ "name": "subscription", "schema": id });
            method["x-notification"] = json!({
                "method": notification,
                "params": {
                    "type": "object",
                    "properties": { "subscription": id, "result": answer },
                    "required": ["subscription", "result"],
                },
            });
            method["x-unsubscribe"] = json!({
                "method": unsubscribe,
                "paramStructure": "by-position",
                "params": [{ "name": "subscription", "required": true, "schema": id }],
                "result": {
                    "name": "ended",
                    "schema": { "type": "boolean", "description": "Whether there was such a subscription." },
                },
            });
        }
    }
    method
}

/// Generates schemas and collects those that others reference.
struct Schemas {
    taken: SchemaGenerator,
    /// The parameters as a client writes them. A field that it always writes may be null; a field that it may omit is never null.
    written: SchemaGenerator,
    answered: SchemaGenerator,
    /// Names of parameter objects. Their fields become the parameters of a method, so nothing references them.
    spread: Vec<String>,
}

impl Schemas {
    fn new() -> Self {
        let generator = |contract: Contract| {
            let settings = SchemaSettings::draft07().with(|settings| {
                settings.contract = contract;
                settings.definitions_path = SCHEMAS[1..].trim_end_matches('/').to_owned().into();
                settings.meta_schema = None;
                settings.transforms.clear();
            });
            SchemaGenerator::new(settings)
        };
        Self {
            taken: generator(Contract::Deserialize),
            written: generator(Contract::Serialize),
            answered: generator(Contract::Serialize),
            spread: Vec::new(),
        }
    }

    /// Converts a parameter object to OpenRPC's list of parameters: required ones first, in the order of their declaration, then the others
    /// by name. Generators make positional parameters of the required ones.
    fn params(&mut self, schema: fn(&mut SchemaGenerator) -> Schema) -> Value {
        let taken = schema(&mut self.taken);
        let written = schema(&mut self.written);
        let (taken, name) = resolve(&taken, &self.taken);
        let (written, _) = resolve(&written, &self.written);
        self.spread.extend(name);
        let required = names(&taken["required"]);
        let kept_null = names(&written["required"]);
        let mut params: Vec<(usize, Value)> = Vec::new();
        for (name, schema) in taken["properties"].as_object().into_iter().flatten() {
            let mut schema = schema.clone();
            if !kept_null.contains(name) {
                strip_null(&mut schema);
            }
            polish(&mut schema);
            let description = schema
                .as_object_mut()
                .and_then(|fields| fields.remove("description"));
            unwrap_reference(&mut schema);
            let position = required.iter().position(|required| required == name);
            params.push((
                position.unwrap_or(required.len()),
                json!({ "name": name, "description": description, "required": position.is_some(), "schema": schema }),
            ));
        }
        // The sort is stable, so the names of optional parameters stay sorted.
        params.sort_by_key(|(position, _)| *position);
        params.into_iter().map(|(_, param)| param).collect()
    }

    fn answer(&mut self, schema: fn(&mut SchemaGenerator) -> Schema) -> Value {
        let mut schema = schema(&mut self.answered).to_value();
        polish(&mut schema);
        schema
    }

    /// Returns all referenced schemas.
    fn take(mut self) -> Value {
        // Answers contain its fields, not a reference.
        self.answered.subschema_for::<Observed>();
        let mut all = Map::new();
        for mut generator in [self.taken, self.answered] {
            for (name, mut schema) in generator.take_definitions(true) {
                if self.spread.contains(&name) {
                    continue;
                }
                polish(&mut schema);
                if let Some(head) = split_head(&name, &mut schema) {
                    all.insert(head_name(&name), head);
                }
                let before = all.insert(name.clone(), schema.clone());
                debug_assert!(
                    before.is_none_or(|before| before == schema),
                    "{name} has one schema"
                );
            }
        }
        self.spread.clear();
        let observed = all[OBSERVED].clone();
        for (_, schema) in all.iter_mut().filter(|(name, _)| *name != OBSERVED) {
            extend_observed(schema, &observed);
        }
        Value::Object(all)
    }
}

/// Splits an object with alternatives into `allOf` of its own fields, which get a name, and the alternatives. Generators read
/// `properties` beside `oneOf` as a type of its own. Returns the schema of the fields.
fn split_head(name: &str, schema: &mut Value) -> Option<Value> {
    let fields = schema.as_object_mut()?;
    if !fields.contains_key("properties") || !fields.contains_key("oneOf") {
        return None;
    }
    let mut head = Map::new();
    head.insert(
        "description".into(),
        format!("The fields that every `{name}` has.").into(),
    );
    for field in ["type", "properties", "required"] {
        if let Some(value) = fields.remove(field) {
            head.insert(field.into(), value);
        }
    }
    let alternatives = fields.remove("oneOf")?;
    let reference = format!("{SCHEMAS}{}", head_name(name));
    fields.insert(
        "allOf".into(),
        json!([{ "$ref": reference }, { "oneOf": alternatives }]),
    );
    Some(head.into())
}

/// Replaces the fields of `Observed` in an answer that has them all by a reference, so that generators make one base type of them.
fn extend_observed(schema: &mut Value, observed: &Value) {
    let Some(shared) = observed["properties"].as_object() else {
        return;
    };
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    let Some(Value::Object(properties)) = fields.get_mut("properties") else {
        return;
    };
    if !shared
        .iter()
        .all(|(name, field)| properties.get(name) == Some(field))
    {
        return;
    }
    properties.retain(|name, _| !shared.contains_key(name));
    if let Some(Value::Array(required)) = fields.get_mut("required") {
        required.retain(|name| name.as_str().is_none_or(|name| !shared.contains_key(name)));
    }
    let description = fields.remove("description");
    let own = std::mem::take(fields);
    fields.extend(description.map(|text| ("description".to_owned(), text)));
    fields.insert(
        "allOf".into(),
        json!([{ "$ref": format!("{SCHEMAS}{OBSERVED}") }, own]),
    );
}

fn head_name(name: &str) -> String {
    format!("{name}Head")
}

/// Replaces alternatives that are constants by one enumeration; the descriptions of the constants become part of its own.
fn join_constants(fields: &mut Map<String, Value>) {
    let Some(alternatives) = fields.get("oneOf").and_then(Value::as_array) else {
        return;
    };
    let mut words: Vec<Value> = Vec::new();
    let mut text = fields
        .get("description")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    for alternative in alternatives {
        match (&alternative["const"], &alternative["enum"]) {
            (Value::String(word), _) => {
                if let Some(description) = alternative["description"].as_str() {
                    text = format!("{text} `{word}`: {description}");
                }
                words.push(word.as_str().into());
            }
            (_, Value::Array(several)) => words.extend(several.iter().cloned()),
            _ => return,
        }
    }
    fields.remove("oneOf");
    fields.insert("type".into(), "string".into());
    fields.insert("enum".into(), words.into());
    fields.insert("description".into(), text.trim().into());
}

/// Resolves a reference. Returns the schema and its name, if it has one.
fn resolve(schema: &Schema, generator: &SchemaGenerator) -> (Value, Option<String>) {
    let name = schema
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|reference| reference.strip_prefix(SCHEMAS))
        .map(str::to_owned);
    let named = name.as_ref().and_then(|name| generator.definitions().get(name));
    (named.cloned().unwrap_or_else(|| schema.clone().to_value()), name)
}

fn names(list: &Value) -> Vec<String> {
    let words = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    words.map(str::to_owned).collect()
}

/// Removes null from a schema, for a field that is omitted instead.
fn strip_null(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    if let Some(Value::Array(types)) = fields.get_mut("type") {
        types.retain(|word| word != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            fields.insert("type".into(), only);
        }
    }
    if let Some(Value::Array(choices)) = fields.get_mut("anyOf") {
        choices.retain(|choice| *choice != json!({ "type": "null" }));
        if let [only] = choices.as_slice() {
            let only = only.clone();
            fields.remove("anyOf");
            fields.extend(only.as_object().cloned().unwrap_or_default());
        }
    }
}

/// Simplifies a schema and all schemas in it: removes null from fields that may be omitted, replaces Rust's formats, and moves a reference
/// with siblings into `allOf`, because draft 7 ignores siblings of a reference.
fn polish(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else {
        if let Value::Array(list) = schema {
            list.iter_mut().for_each(polish);
        }
        return;
    };
    let required = fields.get("required").map(names).unwrap_or_default();
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        for (name, property) in properties {
            if !required.contains(name) {
                strip_null(property);
            }
        }
    }
    match fields.get("format").and_then(Value::as_str) {
        Some("uint") => drop(fields.insert("format".into(), "uint64".into())),
        Some("double") => drop(fields.remove("format")),
        _ => {}
    }
    if fields.len() > 1
        && let Some(reference) = fields.remove("$ref")
    {
        fields.insert("allOf".into(), json!([{ "$ref": reference }]));
    }
    join_constants(fields);
    // Line breaks of the source are not part of the description.
    if let Some(Value::String(text)) = fields.get_mut("description") {
        *text = text.replace('\n', " ");
    }
    // A null default means the same as omitting the field.
    if fields.get("default").is_some_and(Value::is_null) {
        fields.remove("default");
    }
    fields.values_mut().for_each(polish);
}

/// Shortens an `allOf` with one reference to the reference, after its description has been moved.
fn unwrap_reference(schema: &mut Value) {
    if let Some([only]) = schema["allOf"].as_array().map(Vec::as_slice)
        && schema.as_object().is_some_and(|fields| fields.len() == 1)
    {
        *schema = only.clone();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_errors_a_summary_and_described_parameters() {
        let document = document();
        for method in document["methods"].as_array().expect("methods") {
            assert!(
                method["summary"].as_str().is_some_and(|text| text.ends_with('.')),
                "{method}"
            );
            assert!(!method["errors"].as_array().expect("errors").is_empty());
            for param in method["params"].as_array().expect("params") {
                assert!(param["description"].is_string(), "{}: {param}", method["name"]);
            }
        }
    }

    #[test]
    fn every_reference_resolves() {
        fn visit(value: &Value, document: &Value) {
            match value {
                Value::Object(fields) => {
                    if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                        let pointer = reference
                            .strip_prefix('#')
                            .expect("a reference into the document");
                        assert!(
                            document.pointer(pointer).is_some(),
                            "{reference} does not resolve"
                        );
                    }
                    fields.values().for_each(|value| visit(value, document));
                }
                Value::Array(list) => list.iter().for_each(|value| visit(value, document)),
                _ => {}
            }
        }
        let document = document();
        visit(&document, &document);
    }

    #[test]
    fn document_is_deterministic() {
        assert_eq!(document().to_string(), document().to_string());
    }
}
