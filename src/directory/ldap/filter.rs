//! The search filter (RFC 4515), read once and with `{user}` in its values.
//!
//! The user name is put in after the filter was taken apart, as a value of its own and as it is, so no character of
//! it can become a part of the filter. That is what escaping in the text would do, without a text that could be wrong.

use super::ber;
use super::ber::OCTETS;
use super::ber::SEQUENCE;

/// The only placeholder.
const USER: &str = "{user}";
/// So deep may its parentheses be nested.
const MAX_DEPTH: usize = 16;
/// The longest one.
const MAX_FILTER_BYTES: usize = 4096;

/// A filter that waits for a user name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter(Node);

/// What is wrong with a filter, and at which byte of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    pub(super) at: usize,
    pub(super) text: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    And(Vec<Node>),
    Or(Vec<Node>),
    Not(Box<Node>),
    /// Equality, `>=`, `<=` and `~=`, by their tag.
    Compare(u8, String, Value),
    Present(String),
    Substrings(String, Vec<(u8, Value)>),
    Extensible {
        rule: Option<String>,
        attribute: Option<String>,
        dn: bool,
        value: Value,
    },
}

/// A value in pieces.
type Value = Vec<Piece>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Bytes(Vec<u8>),
    User,
}

const AND: u8 = 0xa0;
const OR: u8 = 0xa1;
const NOT: u8 = 0xa2;
const EQUAL: u8 = 0xa3;
const SUBSTRINGS: u8 = 0xa4;
const GREATER_OR_EQUAL: u8 = 0xa5;
const LESS_OR_EQUAL: u8 = 0xa6;
const PRESENT: u8 = 0x87;
const APPROXIMATE: u8 = 0xa8;
const EXTENSIBLE: u8 = 0xa9;
const INITIAL: u8 = 0x80;
const ANY: u8 = 0x81;
const FINAL: u8 = 0x82;

impl Filter {
    /// Takes a filter apart.
    pub(super) fn parse(text: &str) -> Result<Self, Wrong> {
        let wrong = |at: usize, text: &str| Wrong {
            at,
            text: text.to_owned(),
        };
        if text.len() > MAX_FILTER_BYTES {
            return Err(wrong(0, "is longer than 4096 bytes"));
        }
        if !text.contains(USER) {
            return Err(wrong(
                0,
                "holds no {user}, so it would find the same entries for everybody; write it as in \"(sAMAccountName={user})\"",
            ));
        }
        let blanked = text.replace(USER, &"_".repeat(USER.len()));
        if let Some(at) = blanked.find(['{', '}']) {
            return Err(wrong(
                at,
                "has another placeholder than {user}; a brace of its own is written \\7b or \\7d",
            ));
        }
        let mut parser = Parser { text, at: 0 };
        let node = parser.node(0)?;
        if parser.at < text.len() {
            return Err(parser
                .wrong("goes on after its last parenthesis; join the parts as in \"(&(…)(…))\""));
        }
        Ok(Self(node))
    }

    /// The filter that every entry passes, encoded.
    pub(super) fn anything() -> Vec<u8> {
        Node::Present("objectClass".to_owned()).encode(&[])
    }

    /// The filter of a search for this user.
    pub(super) fn encode(&self, user: &str) -> Vec<u8> {
        self.0.encode(user.as_bytes())
    }
}

impl Node {
    fn encode(&self, user: &[u8]) -> Vec<u8> {
        let all = |nodes: &[Self]| nodes.iter().map(|n| n.encode(user)).collect::<Vec<_>>();
        match self {
            Self::And(nodes) => ber::nest(AND, &all(nodes)),
            Self::Or(nodes) => ber::nest(OR, &all(nodes)),
            Self::Not(node) => ber::element(NOT, &node.encode(user)),
            Self::Compare(tag, attribute, value) => ber::nest(
                *tag,
                &[
                    ber::element(OCTETS, attribute.as_bytes()),
                    ber::element(OCTETS, &filled(value, user)),
                ],
            ),
            Self::Present(attribute) => ber::element(PRESENT, attribute.as_bytes()),
            Self::Substrings(attribute, parts) => {
                let parts: Vec<_> = parts
                    .iter()
                    .map(|(tag, value)| ber::element(*tag, &filled(value, user)))
                    .collect();
                ber::nest(
                    SUBSTRINGS,
                    &[
                        ber::element(OCTETS, attribute.as_bytes()),
                        ber::nest(SEQUENCE, &parts),
                    ],
                )
            }
            Self::Extensible {
                rule,
                attribute,
                dn,
                value,
            } => {
                let rule = rule.as_ref().map(|r| ber::element(0x81, r.as_bytes()));
                let attribute = attribute.as_ref().map(|a| ber::element(0x82, a.as_bytes()));
                let mut parts: Vec<_> = rule.into_iter().chain(attribute).collect();
                parts.push(ber::element(0x83, &filled(value, user)));
                if *dn {
                    parts.push(ber::element(0x84, &[0xff]));
                }
                ber::nest(EXTENSIBLE, &parts)
            }
        }
    }
}

fn filled(value: &[Piece], user: &[u8]) -> Vec<u8> {
    let pieces = value.iter().map(|piece| match piece {
        Piece::Bytes(bytes) => bytes.as_slice(),
        Piece::User => user,
    });
    pieces.collect::<Vec<_>>().concat()
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

impl Parser<'_> {
    fn wrong(&self, text: impl Into<String>) -> Wrong {
        Wrong {
            at: self.at,
            text: text.into(),
        }
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn expect(&mut self, token: &str) -> Result<(), Wrong> {
        if self.eat(token) {
            return Ok(());
        }
        let found = match self.rest().chars().next() {
            Some(c) => format!("\"{}\" stands", c.escape_default()),
            None => "it ends".to_owned(),
        };
        Err(self.wrong(format!("needs \"{token}\" where {found}")))
    }

    fn node(&mut self, depth: usize) -> Result<Node, Wrong> {
        if depth > MAX_DEPTH {
            return Err(self.wrong("is nested too deeply"));
        }
        self.expect("(")?;
        let node = if self.eat("&") {
            Node::And(self.nodes(depth)?)
        } else if self.eat("|") {
            Node::Or(self.nodes(depth)?)
        } else if self.eat("!") {
            Node::Not(Box::new(self.node(depth + 1)?))
        } else {
            self.item()?
        };
        self.expect(")")?;
        Ok(node)
    }

    fn nodes(&mut self, depth: usize) -> Result<Vec<Node>, Wrong> {
        let mut nodes = vec![self.node(depth + 1)?];
        while self.rest().starts_with('(') {
            nodes.push(self.node(depth + 1)?);
        }
        Ok(nodes)
    }

    fn item(&mut self) -> Result<Node, Wrong> {
        let attribute = self.name();
        if self.rest().starts_with(':') {
            return self.extensible(attribute);
        }
        let Some(attribute) = attribute else {
            return Err(self.wrong("needs the name of an attribute here, such as sAMAccountName"));
        };
        for (sign, tag) in [
            (">=", GREATER_OR_EQUAL),
            ("<=", LESS_OR_EQUAL),
            ("~=", APPROXIMATE),
        ] {
            if self.eat(sign) {
                let start = self.at;
                let value = self.value()?;
                if value.contains(&Piece::User) {
                    self.at = start;
                    return Err(
                        self.wrong("compares {user} otherwise than by =, which finds others too")
                    );
                }
                return Ok(Node::Compare(tag, attribute, value));
            }
        }
        self.expect("=")?;
        let start = self.at;
        let mut parts = vec![self.value()?];
        while self.eat("*") {
            parts.push(self.value()?);
        }
        if parts.len() == 1 {
            let value = parts.remove(0);
            return Ok(Node::Compare(EQUAL, attribute, value));
        }
        if parts.iter().all(Vec::is_empty) && parts.len() == 2 {
            return Ok(Node::Present(attribute));
        }
        let last = parts.len() - 1;
        let beside = parts.iter().enumerate().any(|(n, part)| {
            (n > 0 && part.first() == Some(&Piece::User))
                || (n < last && part.last() == Some(&Piece::User))
        });
        if beside {
            self.at = start;
            return Err(self.wrong(
                "has a * beside {user}, which finds everybody whose name begins or ends alike",
            ));
        }
        let tag = |n: usize| match n {
            0 => INITIAL,
            n if n == last => FINAL,
            _ => ANY,
        };
        let parts = parts
            .into_iter()
            .enumerate()
            .filter(|(_, part)| !part.is_empty())
            .map(|(n, part)| (tag(n), part))
            .collect();
        Ok(Node::Substrings(attribute, parts))
    }

    /// `attribute:dn:rule:=value`, of which AD's bit test `:1.2.840.113556.1.4.803:=` is the one that is used.
    fn extensible(&mut self, attribute: Option<String>) -> Result<Node, Wrong> {
        let dn = self.eat(":dn:") && {
            self.at -= 1;
            true
        };
        let mut rule = None;
        if !self.rest().starts_with(":=") {
            self.expect(":")?;
            rule = self.name();
            if rule.is_none() {
                return Err(self.wrong("needs the name of a matching rule here"));
            }
        }
        self.expect(":=")?;
        if attribute.is_none() && rule.is_none() {
            return Err(self.wrong("names neither an attribute nor a matching rule"));
        }
        Ok(Node::Extensible {
            rule,
            attribute,
            dn,
            value: self.value()?,
        })
    }

    /// An attribute with its options, or the number or name of a rule.
    fn name(&mut self) -> Option<String> {
        let end = self
            .rest()
            .find(|c: char| !c.is_ascii_alphanumeric() && !"-.;_".contains(c))
            .unwrap_or(self.rest().len());
        let name = self.rest()[..end].to_owned();
        self.at += end;
        (!name.is_empty()).then_some(name)
    }

    /// Up to the next unescaped parenthesis or asterisk.
    fn value(&mut self) -> Result<Value, Wrong> {
        let mut value = Vec::new();
        let mut bytes = Vec::new();
        while let Some(c) = self.rest().chars().next() {
            match c {
                ')' | '*' => break,
                '(' | '\0' => {
                    return Err(self.wrong(
                        "has a character in a value that is written \\28, \\29, \\2a, \\5c or \\00",
                    ));
                }
                '\\' => {
                    let hex = self
                        .rest()
                        .get(1..3)
                        .filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()));
                    let Some(byte) = hex.and_then(|h| u8::from_str_radix(h, 16).ok()) else {
                        return Err(self.wrong("has a \\ that is not followed by two hexadecimal digits (in a TOML string write it in '…')"));
                    };
                    bytes.push(byte);
                    self.at += 3;
                }
                _ if self.eat(USER) => {
                    if !bytes.is_empty() {
                        value.push(Piece::Bytes(std::mem::take(&mut bytes)));
                    }
                    value.push(Piece::User);
                }
                c => {
                    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    self.at += c.len_utf8();
                }
            }
        }
        if !bytes.is_empty() {
            value.push(Piece::Bytes(bytes));
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::ber::Reader;
    use super::*;

    fn wrong(text: &str) -> Wrong {
        Filter::parse(text).unwrap_err()
    }

    #[test]
    fn a_filter_is_encoded_as_the_standard_shows() {
        let filter = Filter::parse(
            r"(&(|(cn=a\2a{user})(!(mail={user}@*.org)))(x>=1)(c:1.2.3:=2)(o:dn:=y)(p=*))",
        )
        .unwrap();
        let bytes = filter.encode(")(");
        let mut outer = Reader(Reader(&bytes).take(AND).unwrap());
        let mut parts = Reader(outer.take(OR).unwrap());
        let equal = parts.take(EQUAL).unwrap();
        assert_eq!(equal, b"\x04\x02cn\x04\x04a*)(");
        let not = Reader(parts.take(NOT).unwrap()).take(SUBSTRINGS).unwrap();
        assert_eq!(not, b"\x04\x04mail\x30\x0b\x80\x03)(@\x82\x04.org");
        assert_eq!(outer.take(GREATER_OR_EQUAL).unwrap(), b"\x04\x01x\x04\x011");
        assert_eq!(
            outer.take(EXTENSIBLE).unwrap(),
            b"\x81\x051.2.3\x82\x01c\x83\x012"
        );
        assert_eq!(
            outer.take(EXTENSIBLE).unwrap(),
            b"\x82\x01o\x83\x01y\x84\x01\xff"
        );
        assert_eq!(outer.take(PRESENT).unwrap(), b"p");
        assert!(outer.0.is_empty());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, at, what) in [
            ("(uid={user}", 11, "where it ends"),
            ("(uid={user})x", 12, "goes on after"),
            ("(uid={user})(a=b)", 12, "goes on after"),
            ("(&)({user})", 2, "needs \"(\""),
            ("(uid={user}{x})", 11, "another placeholder"),
            ("(uid={user})(x={)", 15, "another placeholder"),
            ("(uid={user}\\zz)", 11, "two hexadecimal digits"),
            ("(uid={user}\\é)", 11, "two hexadecimal digits"),
            ("(uid=({user})", 5, "is written"),
            ("(uid=*{user})", 5, "beside {user}"),
            ("(uid=a*{user}*b)", 5, "beside {user}"),
            ("(uid~={user})", 6, "otherwise than by ="),
            ("(uid:={user}", 12, "where it ends"),
            ("(:={user})", 3, "names neither"),
        ] {
            let wrong = wrong(text);
            assert!(wrong.text.contains(what), "{text}: {wrong:?}");
            assert_eq!(wrong.at, at, "{text}: {wrong:?}");
        }
        let deep = "(!".repeat(20) + "(uid={user})" + &")".repeat(20);
        assert!(wrong(&deep).text.contains("too deeply"));
        assert!(wrong(&"x".repeat(5000)).text.contains("longer"));
    }

    proptest! {
        #[test]
        fn no_name_becomes_more_than_a_value(user in any::<String>()) {
            let bytes = Filter::parse("(&(a=b)(uid={user}))").unwrap().encode(&user);
            let mut all = Reader(&bytes);
            let mut and = Reader(all.take(AND).unwrap());
            and.take(EQUAL).unwrap();
            let mut equal = Reader(and.take(EQUAL).unwrap());
            prop_assert_eq!(equal.take(OCTETS).unwrap(), b"uid");
            prop_assert_eq!(equal.take(OCTETS).unwrap(), user.as_bytes());
            prop_assert!(equal.0.is_empty() && and.0.is_empty() && all.0.is_empty());
        }

        #[test]
        fn no_text_breaks_the_parser(text in "[(){}&|!=*:\\\\a-z0-9<>~ é]{0,40}", user in any::<String>()) {
            for text in [text.clone(), format!("({text}={{user}})"), format!("(&({text})(a={{user}}))")] {
                match Filter::parse(&text) {
                    Ok(filter) => drop(filter.encode(&user)),
                    Err(wrong) => prop_assert!(wrong.at <= text.len() && text.is_char_boundary(wrong.at)),
                }
            }
        }
    }
}
