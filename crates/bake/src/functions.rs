//! The functions that every definition may call (buildx, "Bake standard library functions"; go-cty, `function/stdlib`).

mod codecs;
mod collections;
mod format;
mod networks;
pub(crate) mod numbers;
mod text;
mod times;
mod versions;

pub use codecs::record;

use crate::value::{Kind, Value};

/// Why a call has come to nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// By an argument, from 0.
    Argument(usize, String),
    /// How many it needs, and which one is missing.
    TooFew(String),
    /// How many it takes at most.
    TooMany(usize),
    /// The function says so.
    Result(String),
}

/// What a parameter takes. Other values are converted, and nothing is refused.
#[derive(Clone, Copy)]
enum Takes {
    Text,
    Number,
    Truth,
    Texts,
    /// Anything but null.
    Any,
    /// Anything.
    Nullable,
}

impl Takes {
    fn read(self, value: &Value) -> Result<Value, String> {
        let kind = match self {
            Takes::Nullable => return Ok(value.clone()),
            _ if *value == Value::Null => return Err("argument must not be null".to_owned()),
            Takes::Any => return Ok(value.clone()),
            Takes::Text => Kind::String,
            Takes::Number => Kind::Number,
            Takes::Truth => Kind::Bool,
            Takes::Texts => Kind::list(Kind::String),
        };
        value.convert(&kind)
    }
}

type Run = fn(&[Value]) -> Result<Value, String>;

struct Builtin {
    name: &'static str,
    parameters: &'static [(&'static str, Takes)],
    /// Any number of further ones.
    variadic: Option<(&'static str, Takes)>,
    run: Run,
}

const fn fixed(name: &'static str, parameters: &'static [(&'static str, Takes)], run: Run) -> Builtin {
    Builtin { name, parameters, variadic: None, run }
}

const fn open(
    name: &'static str,
    parameters: &'static [(&'static str, Takes)],
    variadic: (&'static str, Takes),
    run: Run,
) -> Builtin {
    Builtin { name, parameters, variadic: Some(variadic), run }
}

const PAIR: &[(&str, Takes)] = &[("a", Takes::Number), ("b", Takes::Number)];
const TRUTHS: &[(&str, Takes)] = &[("a", Takes::Truth), ("b", Takes::Truth)];
const ONE: &[(&str, Takes)] = &[("num", Takes::Number)];
const STRING: &[(&str, Takes)] = &[("str", Takes::Text)];
const LIST: &[(&str, Takes)] = &[("list", Takes::Any)];
const BOTH: &[(&str, Takes)] = &[("a", Takes::Nullable), ("b", Takes::Nullable)];
const SETS: (&str, Takes) = ("sets", Takes::Any);

/// By name. `can`, `try` and `convert` see their arguments before these come to anything, and are not here.
const BUILTINS: &[Builtin] = &[
    fixed("absolute", ONE, numbers::absolute),
    fixed("add", PAIR, |values| numbers::binary(values, numbers::add)),
    fixed("and", TRUTHS, |values| numbers::logic(values, |a, b| a && b)),
    fixed("base64decode", STRING, codecs::base64decode),
    fixed("base64encode", STRING, codecs::base64encode),
    fixed("basename", &[("path", Takes::Text)], text::basename),
    open("bcrypt", STRING, ("cost", Takes::Number), codecs::bcrypt),
    fixed("byteslen", &[("buf", Takes::Any)], codecs::no_bytes),
    fixed("bytesslice", &[("buf", Takes::Any), ("offset", Takes::Number), ("length", Takes::Number)], codecs::no_bytes),
    fixed("ceil", ONE, |values| numbers::rounded(values, f64::ceil)),
    fixed("chomp", STRING, text::chomp),
    fixed("chunklist", &[("list", Takes::Any), ("size", Takes::Number)], collections::chunklist),
    fixed("cidrhost", &[("prefix", Takes::Text), ("hostnum", Takes::Number)], networks::host),
    fixed("cidrnetmask", &[("prefix", Takes::Text)], networks::netmask),
    fixed("cidrsubnet", &[("prefix", Takes::Text), ("newbits", Takes::Number), ("netnum", Takes::Number)], networks::subnet),
    open("cidrsubnets", &[("prefix", Takes::Text)], ("newbits", Takes::Number), networks::subnets),
    open("coalesce", &[], ("vals", Takes::Nullable), collections::coalesce),
    open("coalescelist", &[], ("vals", Takes::Nullable), collections::coalescelist),
    fixed("compact", &[("list", Takes::Texts)], collections::compact),
    open("concat", &[], ("seqs", Takes::Any), collections::concat),
    fixed("contains", &[("list", Takes::Any), ("value", Takes::Nullable)], collections::contains),
    fixed("csvdecode", STRING, codecs::csvdecode),
    fixed("dirname", &[("path", Takes::Text)], text::dirname),
    fixed("distinct", LIST, collections::distinct),
    fixed("divide", PAIR, |values| numbers::division(values, numbers::divide)),
    fixed("element", &[("list", Takes::Any), ("index", Takes::Number)], collections::element),
    fixed("equal", BOTH, |values| Ok(Value::Bool(values[0] == values[1]))),
    fixed("flatten", LIST, collections::flatten),
    fixed("floor", ONE, |values| numbers::rounded(values, f64::floor)),
    open("format", &[("format", Takes::Text)], ("args", Takes::Nullable), format::format),
    fixed("formatdate", &[("format", Takes::Text), ("time", Takes::Text)], times::formatdate),
    open("formatlist", &[("format", Takes::Text)], ("args", Takes::Nullable), format::formatlist),
    fixed("formattimestamp", &[("format", Takes::Text), ("time", Takes::Any)], times::formattimestamp),
    fixed("greaterthan", PAIR, |values| numbers::comparison(values, std::cmp::Ordering::is_gt)),
    fixed("greaterthanorequalto", PAIR, |values| numbers::comparison(values, std::cmp::Ordering::is_ge)),
    fixed("hasindex", &[("collection", Takes::Any), ("key", Takes::Any)], collections::hasindex),
    fixed("homedir", &[], |_| Ok(std::env::var("HOME").unwrap_or_default().into())),
    fixed("indent", &[("spaces", Takes::Number), ("str", Takes::Text)], text::indent),
    fixed("index", &[("collection", Takes::Any), ("key", Takes::Any)], collections::index),
    fixed("indexof", &[("list", Takes::Any), ("value", Takes::Nullable)], collections::indexof),
    fixed("int", ONE, |values| numbers::rounded(values, f64::trunc)),
    open("join", &[("separator", Takes::Text)], ("lists", Takes::Texts), text::join),
    fixed("jsondecode", STRING, codecs::jsondecode),
    fixed("jsonencode", &[("val", Takes::Nullable)], codecs::jsonencode),
    fixed("keys", &[("inputMap", Takes::Any)], collections::keys),
    fixed("length", &[("collection", Takes::Any)], collections::length),
    fixed("lessthan", PAIR, |values| numbers::comparison(values, std::cmp::Ordering::is_lt)),
    fixed("lessthanorequalto", PAIR, |values| numbers::comparison(values, std::cmp::Ordering::is_le)),
    fixed("log", &[("num", Takes::Number), ("base", Takes::Number)], numbers::log),
    fixed("lookup", &[("inputMap", Takes::Any), ("key", Takes::Text), ("default", Takes::Nullable)], collections::lookup),
    fixed("lower", STRING, |values| Ok(text::of(&values[0]).to_lowercase().into())),
    open("max", &[], ("numbers", Takes::Number), |values| numbers::extreme(values, std::cmp::Ordering::is_gt)),
    fixed("md5", STRING, codecs::md5),
    open("merge", &[], ("maps", Takes::Nullable), collections::merge),
    open("min", &[], ("numbers", Takes::Number), |values| numbers::extreme(values, std::cmp::Ordering::is_lt)),
    fixed("modulo", PAIR, |values| numbers::division(values, numbers::modulo)),
    fixed("multiply", PAIR, |values| numbers::binary(values, numbers::multiply)),
    fixed("negate", ONE, numbers::negate),
    fixed("not", &[("val", Takes::Truth)], |values| Ok(Value::Bool(values[0] != Value::Bool(true)))),
    fixed("notequal", BOTH, |values| Ok(Value::Bool(values[0] != values[1]))),
    fixed("or", TRUTHS, |values| numbers::logic(values, |a, b| a || b)),
    fixed("parseint", &[("number", Takes::Any), ("base", Takes::Number)], numbers::parseint),
    fixed("pow", &[("num", Takes::Number), ("power", Takes::Number)], numbers::pow),
    open("range", &[], ("params", Takes::Number), numbers::range),
    fixed("regex", &[("pattern", Takes::Text), ("string", Takes::Text)], text::regex),
    fixed("regex_replace", &[("str", Takes::Text), ("pattern", Takes::Text), ("replace", Takes::Text)], text::regex_replace),
    fixed("regexall", &[("pattern", Takes::Text), ("string", Takes::Text)], text::regexall),
    fixed("replace", &[("str", Takes::Text), ("substr", Takes::Text), ("replace", Takes::Text)], text::replace),
    fixed("reverse", STRING, |values| Ok(text::of(&values[0]).chars().rev().collect::<String>().into())),
    fixed("reverselist", LIST, collections::reverselist),
    fixed("rsadecrypt", &[("ciphertext", Takes::Text), ("privatekey", Takes::Text)], codecs::rsadecrypt),
    fixed("sanitize", &[("name", Takes::Text)], text::sanitize),
    fixed("semvercmp", &[("version", Takes::Text), ("contraint", Takes::Text)], versions::compare),
    fixed("sethaselement", &[("set", Takes::Any), ("elem", Takes::Any)], collections::sethaselement),
    open("setintersection", &[("first_set", Takes::Any)], ("other_sets", Takes::Any), collections::setintersection),
    open("setproduct", &[], SETS, collections::setproduct),
    fixed("setsubtract", &[("a", Takes::Any), ("b", Takes::Any)], collections::setsubtract),
    open("setsymmetricdifference", &[("first_set", Takes::Any)], ("other_sets", Takes::Any), collections::setsymmetricdifference),
    open("setunion", &[("first_set", Takes::Any)], ("other_sets", Takes::Any), collections::setunion),
    fixed("sha1", STRING, |values| codecs::digest(values, &ring::digest::SHA1_FOR_LEGACY_USE_ONLY)),
    fixed("sha256", STRING, |values| codecs::digest(values, &ring::digest::SHA256)),
    fixed("sha512", STRING, |values| codecs::digest(values, &ring::digest::SHA512)),
    fixed("signum", ONE, numbers::signum),
    fixed("slice", &[("list", Takes::Any), ("start_index", Takes::Number), ("end_index", Takes::Number)], collections::slice),
    fixed("sort", &[("list", Takes::Texts)], collections::sort),
    fixed("split", &[("separator", Takes::Text), ("str", Takes::Text)], text::split),
    fixed("strlen", STRING, |values| Ok(text::of(&values[0]).chars().count().into())),
    fixed("substr", &[("str", Takes::Text), ("offset", Takes::Number), ("length", Takes::Number)], text::substr),
    fixed("subtract", PAIR, |values| numbers::binary(values, numbers::subtract)),
    fixed("timeadd", &[("timestamp", Takes::Text), ("duration", Takes::Text)], times::timeadd),
    fixed("timestamp", &[], times::timestamp),
    fixed("title", STRING, text::title),
    fixed("trim", &[("str", Takes::Text), ("cutset", Takes::Text)], text::trim),
    fixed("trimprefix", &[("str", Takes::Text), ("prefix", Takes::Text)], text::trimprefix),
    fixed("trimspace", STRING, |values| Ok(text::of(&values[0]).trim().into())),
    fixed("trimsuffix", &[("str", Takes::Text), ("suffix", Takes::Text)], text::trimsuffix),
    fixed("unixtimestampparse", &[("unix_timestamp", Takes::Number)], times::unixtimestampparse),
    fixed("upper", STRING, text::upper),
    fixed("urlencode", STRING, codecs::urlencode),
    fixed("uuidv4", &[], codecs::uuidv4),
    fixed("uuidv5", &[("namespace", Takes::Text), ("name", Takes::Text)], codecs::uuidv5),
    fixed("values", &[("mapping", Takes::Any)], collections::values),
    fixed("zipmap", &[("keys", Takes::Texts), ("values", Takes::Any)], collections::zipmap),
];

fn find(name: &str) -> Option<&'static Builtin> {
    BUILTINS.binary_search_by(|builtin| builtin.name.cmp(name)).ok().map(|index| &BUILTINS[index])
}

/// Whether there is a function of this name.
pub(crate) fn exists(name: &str) -> bool {
    matches!(name, "can" | "try" | "convert") || find(name).is_some()
}

/// What a function calls its parameter.
pub(crate) fn parameter(name: &str, index: usize) -> &'static str {
    let found = find(name).and_then(|builtin| builtin.parameters.get(index).copied().or(builtin.variadic));
    found.map_or("", |(name, _)| name)
}

/// Calls a function, if there is one of this name.
pub(crate) fn call(name: &str, values: &[Value]) -> Option<Result<Value, Wrong>> {
    find(name).map(|builtin| builtin.call(values))
}

impl Builtin {
    fn call(&self, values: &[Value]) -> Result<Value, Wrong> {
        let count = self.parameters.len();
        if let Some((missing, _)) = self.parameters.get(values.len()) {
            let more = if self.variadic.is_some() { "at least " } else { "" };
            return Err(Wrong::TooFew(format!("{more}{count} argument(s). Missing value for {missing:?}")));
        }
        let read = |(index, value): (usize, &Value)| {
            let (_, takes) = self.parameters.get(index).copied().or(self.variadic).ok_or(Wrong::TooMany(count))?;
            takes.read(value).map_err(|why| Wrong::Argument(index, why))
        };
        let values = values.iter().enumerate().map(read).collect::<Result<Vec<_>, _>>()?;
        (self.run)(&values).map_err(Wrong::Result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_by_their_names() {
        assert!(BUILTINS.is_sorted_by_key(|builtin| builtin.name));
        assert!(exists("add") && exists("try") && !exists("nothing"));
        assert_eq!(call("nothing", &[]), None);
        assert_eq!(call("add", &[1_i128.into()]), Some(Err(Wrong::TooFew("2 argument(s). Missing value for \"b\"".to_owned()))));
        assert_eq!(call("upper", &["a".into(), "b".into()]), Some(Err(Wrong::TooMany(1))));
        assert_eq!(call("upper", &[Value::Null]), Some(Err(Wrong::Argument(0, "argument must not be null".to_owned()))));
    }
}
