//! Checks values against the published schemas.
//!
//! Supports the JSON Schema keywords that `proto/openrpc.json` uses and fails on any other, so that no schema contains
//! an unchecked keyword. A complete validator would be larger than the daemon's protocol code.

use serde_json::{Map, Value};

/// The published description.
pub(crate) struct Published(Value);

impl Published {
    /// Generates the description; another test compares it with the committed file.
    pub(crate) fn new() -> Self {
        Self(orbd_proto::openrpc::document())
    }

    fn methods(&self) -> &[Value] {
        self.0["methods"].as_array().expect("methods")
    }

    /// Returns the names of all methods.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.methods()
            .iter()
            .filter_map(|method| method["name"].as_str())
            .collect()
    }

    /// Returns a method's description; `None` for requests without one, such as those that end a subscription.
    pub(crate) fn method(&self, name: &str) -> Option<&Value> {
        self.methods().iter().find(|method| method["name"] == name)
    }

    /// Returns whether a request begins or ends a subscription.
    pub(crate) fn is_of_subscriptions(&self, name: &Value) -> bool {
        let begins = |method: &Value| method["name"] == *name && method.get("x-notification").is_some();
        let ends = |method: &Value| name.is_string() && method["x-unsubscribe"]["method"] == *name;
        self.methods().iter().any(|method| begins(method) || ends(method))
    }

    /// Returns the kinds of the errors that a method answers with.
    pub(crate) fn errors(&self, method: &Value) -> Vec<String> {
        let listed = method["errors"].as_array().expect("errors").iter();
        listed
            .map(|error| {
                let error = self.follow(error);
                error["data"]["kind"].as_str().expect("a kind").to_owned()
            })
            .collect()
    }

    /// Checks a request's parameters.
    pub(crate) fn check_params(&self, method: &Value, params: &Value) -> Result<(), String> {
        let declared = method["params"].as_array().expect("params");
        let empty = Map::new();
        let given = match params {
            Value::Null => &empty,
            params => params.as_object().ok_or("params are not an object")?,
        };
        for name in given.keys() {
            if !declared.iter().any(|param| param["name"] == **name) {
                return Err(format!("{name} is not declared"));
            }
        }
        for param in declared {
            let name = param["name"].as_str().expect("a name");
            match given.get(name) {
                Some(value) => self.check(&param["schema"], value, name)?,
                None if param["required"] == true => return Err(format!("{name} is missing")),
                None => {}
            }
        }
        Ok(())
    }

    /// Checks a value against a component.
    pub(crate) fn check_component(&self, name: &str, value: &Value) -> Result<(), String> {
        self.check(&self.0["components"]["schemas"][name], value, name)
    }

    fn follow<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(reference) => self
                .0
                .pointer(&reference[1..])
                .expect("a reference leads somewhere"),
            None => schema,
        }
    }

    /// Checks a value; the error names the path and the reason.
    pub(crate) fn check(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let words = schema.as_object().ok_or("a schema is an object")?;
        for (word, operand) in words {
            let holds = match word.as_str() {
                "description" | "default" | "format" => true,
                "$ref" => {
                    self.check(self.follow(schema), value, at)?;
                    true
                }
                "type" => match operand {
                    Value::String(name) => is(value, name),
                    names => names.as_array().is_some_and(|names| {
                        names
                            .iter()
                            .any(|name| name.as_str().is_some_and(|name| is(value, name)))
                    }),
                },
                "const" => operand == value,
                "enum" => operand.as_array().is_some_and(|all| all.contains(value)),
                "minimum" => value.as_f64() >= operand.as_f64(),
                "maximum" => value.as_f64() <= operand.as_f64(),
                "minItems" => {
                    value.as_array().map(Vec::len) >= operand.as_u64().and_then(|n| n.try_into().ok())
                }
                "maxItems" => {
                    value.as_array().map(Vec::len) <= operand.as_u64().and_then(|n| n.try_into().ok())
                }
                // Only client names have a pattern; a test of the daemon checks it.
                "pattern" => value.is_string(),
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(operand, item, &format!("{at}/{index}"))?;
                    }
                    true
                }
                "properties" => {
                    for (name, property) in operand.as_object().into_iter().flatten() {
                        if let Some(value) = value.get(name) {
                            self.check(property, value, &format!("{at}/{name}"))?;
                        }
                    }
                    true
                }
                "additionalProperties" => {
                    for (name, value) in value.as_object().into_iter().flatten() {
                        if schema["properties"].get(name).is_none() {
                            self.check(operand, value, &format!("{at}/{name}"))?;
                        }
                    }
                    true
                }
                "required" => operand
                    .as_array()
                    .into_iter()
                    .flatten()
                    .all(|name| name.as_str().is_some_and(|name| value.get(name).is_some())),
                "allOf" => {
                    for part in operand.as_array().into_iter().flatten() {
                        self.check(part, value, at)?;
                    }
                    true
                }
                "oneOf" => {
                    let parts = operand.as_array().into_iter().flatten();
                    parts.filter(|part| self.check(part, value, at).is_ok()).count() == 1
                }
                "anyOf" => {
                    let mut parts = operand.as_array().into_iter().flatten();
                    parts.any(|part| self.check(part, value, at).is_ok())
                }
                unknown => {
                    return Err(format!(
                        "{at}: the schema has {unknown}, which this validator does not support"
                    ));
                }
            };
            if !holds {
                return Err(format!("{at}: {value} is not {word} {operand}"));
            }
        }
        Ok(())
    }

    /// Collects the fields of an answer that the schema does not have: every field of an answer must be published.
    pub(crate) fn unknown_fields(&self, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
        let schema = self.follow(schema);
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let below = format!("{at}/{name}");
                    match self.field(schema, name, fields) {
                        Some(property) => self.unknown_fields(property, value, &below, found),
                        None => found.push(below),
                    }
                }
            }
            Value::Array(items) => {
                for item in items {
                    self.unknown_fields(&schema["items"], item, at, found);
                }
            }
            _ => {}
        }
    }

    /// Finds a field's schema in an object's schema or in one of its parts.
    fn field<'a>(&'a self, schema: &'a Value, name: &str, of: &Map<String, Value>) -> Option<&'a Value> {
        let schema = self.follow(schema);
        let own = schema["properties"]
            .get(name)
            .or_else(|| schema.get("additionalProperties").filter(|rest| rest.is_object()));
        let parts = |word: &str| schema[word].as_array().into_iter().flatten();
        own.or_else(|| parts("allOf").find_map(|part| self.field(part, name, of)))
            .or_else(|| {
                parts("oneOf")
                    .find(|part| {
                        ["type", "kind"].iter().any(|tag| {
                            of.get(*tag)
                                .is_some_and(|word| part["properties"][tag]["const"] == *word)
                        })
                    })
                    .and_then(|part| self.field(part, name, of))
            })
    }
}

fn is(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}
