//! nf_tables over netlink: one batch is one atomic transaction.
//!
//! Expressions are built as the kernel takes them (`linux/netfilter/nf_tables.h`), in the order in which `nft` compiles
//! the rules quoted beside them in [`crate::rules`]. Registers: 1 is the first of four 16-byte ones; 8, 9 and so on are
//! its 4-byte pieces, which is what concatenations need.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use dhow_sys::netlink::{ACK, Batch, CREATE, Socket, attributes};

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM;
const DELETE_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const DELETE_CHAIN: u16 = SUBSYSTEM | 5;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
const DELETE_RULE: u16 = SUBSYSTEM | 8;
const NEW_SET: u16 = SUBSYSTEM | 9;
const GET_SET: u16 = SUBSYSTEM | 10;
const NEW_ELEMENT: u16 = SUBSYSTEM | 12;
const GET_ELEMENT: u16 = SUBSYSTEM | 13;
const DELETE_ELEMENT: u16 = SUBSYSTEM | 14;
const NEW_GENERATION: u16 = SUBSYSTEM | 15;

/// The family of a table (`NFPROTO_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// Of IPv4 and IPv6.
    Inet = 1,
    Ip = 2,
    Ip6 = 10,
}

impl Family {
    pub fn as_str(self) -> &'static str {
        match self {
            Family::Inet => "inet",
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
        }
    }

    fn of(number: u8) -> Option<Family> {
        [Family::Inet, Family::Ip, Family::Ip6].into_iter().find(|family| *family as u8 == number)
    }
}

pub(crate) const HOOK_PREROUTING: u32 = 0;
pub(crate) const HOOK_INPUT: u32 = 1;
pub(crate) const HOOK_FORWARD: u32 = 2;
pub(crate) const HOOK_OUTPUT: u32 = 3;
pub(crate) const HOOK_POSTROUTING: u32 = 4;

/// `struct nfgenmsg`: family, version, resource id (big-endian).
fn header(family: Family) -> [u8; 4] {
    [family as u8, 0, 0, 0]
}

/// A transaction on one table.
pub(crate) struct Transaction {
    family: Family,
    table: String,
    batch: Batch,
    acks: u32,
    /// How many rules it adds, by chain.
    pub rules: BTreeMap<String, usize>,
}

impl Transaction {
    pub fn begin(family: Family, table: &str) -> Transaction {
        let mut batch = Batch::new();
        batch.message(BATCH_BEGIN, 0, &[0, 0, 0, 10]);
        Transaction { family, table: table.to_owned(), batch, acks: 0, rules: BTreeMap::new() }
    }

    fn message(&mut self, kind: u16, flags: u16) -> &mut Batch {
        self.acks += 1;
        self.batch.message(kind, flags | ACK, &header(self.family))
    }

    pub fn table(&mut self) {
        let table = self.table.clone();
        self.message(NEW_TABLE, CREATE).string(1, &table);
    }

    /// The table with nothing in it, whatever was there.
    pub fn fresh_table(&mut self) {
        let table = self.table.clone();
        self.table();
        self.message(DELETE_TABLE, 0).string(1, &table);
        self.table();
    }

    /// A chain of type `filter` or `nat` on a hook, with the policy "accept".
    pub fn base_chain(&mut self, name: &str, kind: &str, hook: u32, priority: i32) {
        let table = self.table.clone();
        self.message(NEW_CHAIN, CREATE).string(1, &table).string(3, name).string(7, kind).nested(4, |attributes| {
            attributes.be32(1, hook).be32(2, priority as u32);
        });
    }

    /// A chain without a hook.
    pub fn chain(&mut self, name: &str) {
        let table = self.table.clone();
        self.message(NEW_CHAIN, CREATE).string(1, &table).string(3, name);
    }

    pub fn delete_chain(&mut self, name: &str) {
        let table = self.table.clone();
        self.message(DELETE_CHAIN, 0).string(1, &table).string(3, name);
    }

    /// Removes all rules of a chain.
    pub fn flush(&mut self, chain: &str) {
        let table = self.table.clone();
        self.message(DELETE_RULE, 0).string(1, &table).string(2, chain);
    }

    /// A map from a key to the address and port that a packet is sent to. Types come with their lengths in bytes.
    pub fn map(&mut self, name: &str, id: u32, key: (u32, u32), (data_type, data_length): (u32, u32)) {
        const MAP: u32 = 8;
        self.keyed(name, id, MAP, key).be32(6, data_type).be32(7, data_length);
    }

    pub fn set(&mut self, name: &str, id: u32, key: (u32, u32)) {
        self.keyed(name, id, 0, key);
    }

    fn keyed(&mut self, name: &str, id: u32, flags: u32, (key_type, key_length): (u32, u32)) -> &mut Batch {
        let table = self.table.clone();
        let message = self.message(NEW_SET, CREATE);
        message.string(1, &table).string(2, name).be32(3, flags).be32(4, key_type).be32(5, key_length).be32(10, id)
    }

    /// A set of links' names.
    pub fn link_set(&mut self, name: &str, id: u32) {
        self.links(name, id, 0, None);
    }

    /// A map from a link's name to a verdict.
    pub fn verdict_map(&mut self, name: &str, id: u32) {
        const MAP: u32 = 8;
        const VERDICT: u32 = 0xffff_ff00;
        self.links(name, id, MAP, Some(VERDICT));
    }

    fn links(&mut self, name: &str, id: u32, flags: u32, data_type: Option<u32>) {
        // For nft's listing alone: the key is a text, not a number (libnftnl, `NFTNL_UDATA_SET_KEYBYTEORDER`: the host's).
        const USER_DATA: [u8; 6] = [0, 4, 1, 0, 0, 0];
        let table = self.table.clone();
        let message = self.message(NEW_SET, CREATE);
        message.string(1, &table).string(2, name).be32(3, flags).be32(4, types::LINK_NAME).be32(5, LINK_NAME as u32).be32(10, id);
        message.bytes(13, &USER_DATA);
        if let Some(data_type) = data_type {
            message.be32(6, data_type);
        }
    }

    /// Adds a link to a set.
    pub fn add_link(&mut self, set: &str, link: &str) {
        self.add_key(set, &link_name(link), 0);
    }

    /// Adds an element to a set, one that nobody else may have put there.
    pub fn add_member(&mut self, set: &str, key: &[u8]) {
        self.add_key(set, key, dhow_sys::netlink::EXCLUSIVE);
    }

    /// Adds an element to a set; that it is there already is fine.
    pub fn ensure_member(&mut self, set: &str, key: &[u8]) {
        self.add_key(set, key, 0);
    }

    fn add_key(&mut self, set: &str, key: &[u8], flags: u16) {
        let table = self.table.clone();
        self.message(NEW_ELEMENT, CREATE | flags).string(2, set).string(1, &table).nested(3, |list| {
            list.nested(1, |element| {
                element.nested(1, |value| {
                    value.bytes(1, key);
                });
            });
        });
    }

    /// Adds a link to a verdict map: its packets go through a chain.
    pub fn add_jump(&mut self, map: &str, link: &str, chain: &str) {
        const JUMP: i32 = -3;
        let table = self.table.clone();
        self.message(NEW_ELEMENT, CREATE).string(2, map).string(1, &table).nested(3, |list| {
            list.nested(1, |element| {
                element.nested(1, |value| {
                    value.bytes(1, &link_name(link));
                });
                element.nested(2, |data| {
                    data.nested(2, |verdict| {
                        verdict.be32(1, JUMP as u32).string(2, chain);
                    });
                });
            });
        });
    }

    pub fn delete_link(&mut self, set: &str, link: &str) {
        self.delete_element(set, &link_name(link));
    }

    pub fn add_element(&mut self, map: &str, key: &[u8], data: &[u8]) {
        // EXCLUSIVE: an element that is there already belongs to somebody else.
        let table = self.table.clone();
        self.message(NEW_ELEMENT, CREATE | dhow_sys::netlink::EXCLUSIVE).string(2, map).string(1, &table).nested(3, |list| {
            list.nested(1, |element| {
                element.nested(1, |value| {
                    value.bytes(1, key);
                });
                element.nested(2, |value| {
                    value.bytes(1, data);
                });
            });
        });
    }

    pub fn delete_element(&mut self, map: &str, key: &[u8]) {
        let table = self.table.clone();
        self.message(DELETE_ELEMENT, 0).string(2, map).string(1, &table).nested(3, |list| {
            list.nested(1, |element| {
                element.nested(1, |value| {
                    value.bytes(1, key);
                });
            });
        });
    }

    pub fn rule(&mut self, chain: &str, expressions: &[Expression]) {
        *self.rules.entry(chain.to_owned()).or_default() += 1;
        let table = self.table.clone();
        let batch = self.message(NEW_RULE, CREATE | dhow_sys::netlink::APPEND);
        batch.string(1, &table).string(2, chain).nested(4, |list| {
            for expression in expressions {
                list.nested(1, |element| expression.encode(element));
            }
        });
    }

    pub fn commit(mut self, socket: &Socket) -> io::Result<()> {
        self.batch.message(BATCH_END, 0, &[0, 0, 0, 10]);
        socket.transaction(self.batch, self.acks)
    }
}

/// Of a register that holds one.
const LINK_NAME: usize = 16;

/// A link's name as a register holds it.
pub(crate) fn link_name(name: &str) -> Vec<u8> {
    let mut value = name.as_bytes().to_vec();
    value.resize(LINK_NAME, 0);
    value
}

/// A socket that becomes readable when more of the packet filter changes than the elements of sets and maps.
pub(crate) fn changes() -> io::Result<OwnedFd> {
    Socket::netfilter_changes(&[NEW_ELEMENT, DELETE_ELEMENT, NEW_GENERATION])
}

/// Whether a map has an element.
pub(crate) fn has_element(socket: &Socket, (family, table): (Family, &str), map: &str, key: &[u8]) -> bool {
    let mut batch = Batch::new();
    batch.message(GET_ELEMENT, ACK, &header(family)).string(2, map).string(1, table).nested(3, |list| {
        list.nested(1, |element| {
            element.nested(1, |value| {
                value.bytes(1, key);
            });
        });
    });
    socket.request(batch).is_ok()
}

/// Whether the table has a chain of this name.
pub(crate) fn has_chain(socket: &Socket, table: &str, name: &str) -> io::Result<bool> {
    let mut batch = Batch::new();
    batch.message(GET_CHAIN, ACK, &header(Family::Inet)).string(1, table).string(3, name);
    match socket.request(batch) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The names of the chains of a table of family inet.
pub(crate) fn chains(socket: &Socket, table: &str) -> io::Result<Vec<String>> {
    chain_names(socket, Family::Inet, table)
}

/// The names of a table's chains.
pub(crate) fn chain_names(socket: &Socket, family: Family, table: &str) -> io::Result<Vec<String>> {
    let mut batch = Batch::new();
    batch.message(GET_CHAIN, dhow_sys::netlink::DUMP, &header(family));
    let answers = socket.request(batch)?;
    let of_table = |answer: &&Answer| answer.text(1).is_some_and(|name| name == table);
    Ok(answers
        .into_iter()
        .map(Answer::of)
        .collect::<Vec<_>>()
        .iter()
        .filter(of_table)
        .filter_map(|answer| answer.text(3))
        .collect())
}

/// A chain that packets come to by themselves.
#[derive(Clone, Debug)]
pub(crate) struct BaseChain {
    pub family: Family,
    pub table: String,
    pub name: String,
    /// Its policy.
    pub drops: bool,
    /// Lower ones come first.
    pub priority: i32,
    /// `filter`, `nat` or `route`.
    pub kind: String,
}

/// The chains of all tables on a hook that may drop packets.
pub(crate) fn base_chains(socket: &Socket, hook: u32) -> io::Result<Vec<BaseChain>> {
    const ALL_FAMILIES: u8 = 0;
    const DROP: u32 = 0;
    let mut batch = Batch::new();
    batch.message(GET_CHAIN, dhow_sys::netlink::DUMP, &[ALL_FAMILIES, 0, 0, 0]);
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_be_bytes);
    let chain = |answer: Answer| {
        let (_, hook_of) = attributes(answer.attribute(4)?).find(|(kind, _)| *kind == 1)?;
        (number(hook_of)? == hook).then_some(())?;
        Some(BaseChain {
            family: Family::of(answer.family())?,
            table: answer.text(1)?,
            name: answer.text(3)?,
            priority: attributes(answer.attribute(4)?).find(|(kind, _)| *kind == 2).and_then(|(_, value)| number(value))? as i32,
            kind: answer.text(7).unwrap_or_default(),
            drops: answer.attribute(5).and_then(number) == Some(DROP),
        })
    };
    Ok(socket.request(batch)?.into_iter().map(Answer::of).filter_map(chain).collect())
}

/// The rules of a table, each as the kernel tells it.
pub(crate) fn rules(socket: &Socket, family: Family, table: &str) -> io::Result<Vec<Vec<u8>>> {
    let mut batch = Batch::new();
    batch.message(GET_RULE, dhow_sys::netlink::DUMP, &header(family)).string(1, table);
    Ok(socket.request(batch)?.into_iter().map(|answer| answer.payload).collect())
}

/// How many rules a table has, by chain. A table that is not there has none.
pub(crate) fn rule_counts(socket: &Socket, family: Family, table: &str) -> io::Result<BTreeMap<String, usize>> {
    let mut batch = Batch::new();
    batch.message(GET_RULE, dhow_sys::netlink::DUMP, &header(family)).string(1, table);
    let mut counts = BTreeMap::new();
    for answer in socket.request(batch)?.into_iter().map(Answer::of) {
        if let Some(chain) = answer.text(2).filter(|_| answer.text(1).as_deref() == Some(table)) {
            *counts.entry(chain).or_default() += 1;
        }
    }
    Ok(counts)
}

/// Whether the elements of a set are beginnings and ends of ranges.
pub(crate) fn set_has_ranges(socket: &Socket, family: Family, table: &str, set: &str) -> io::Result<bool> {
    const INTERVAL: u32 = 4;
    let mut batch = Batch::new();
    batch.message(GET_SET, ACK, &header(family)).string(1, table).string(2, set);
    let flags = |answer: &Answer| answer.attribute(3).and_then(|flags| flags.try_into().ok()).map(u32::from_be_bytes);
    Ok(socket.request(batch)?.into_iter().map(Answer::of).filter_map(|answer| flags(&answer)).any(|flags| flags & INTERVAL != 0))
}

/// The elements of a set, in messages as the kernel tells them.
pub(crate) fn elements(socket: &Socket, family: Family, table: &str, set: &str) -> io::Result<Vec<Vec<u8>>> {
    let mut batch = Batch::new();
    batch.message(GET_ELEMENT, dhow_sys::netlink::DUMP, &header(family)).string(1, table).string(2, set);
    Ok(socket.request(batch)?.into_iter().map(|answer| answer.payload).collect())
}

/// A message from the kernel: `struct nfgenmsg` and attributes.
struct Answer(Vec<u8>);

impl Answer {
    fn of(answer: dhow_sys::netlink::Answer) -> Answer {
        Answer(answer.payload)
    }

    fn family(&self) -> u8 {
        self.0.first().copied().unwrap_or_default()
    }

    fn attribute(&self, wanted: u16) -> Option<&[u8]> {
        attributes(self.0.get(4..)?).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    }

    fn text(&self, wanted: u16) -> Option<String> {
        crate::route::text_of(self.0.get(4..)?, wanted)
    }
}

/// nft's own numbers of types, which only its listing needs: six bits each in a concatenation.
pub(crate) mod types {
    pub const ADDRESS4: u32 = 7;
    pub const ADDRESS6: u32 = 8;
    pub const PROTOCOL: u32 = 12;
    pub const SERVICE: u32 = 13;
    pub const LINK_NAME: u32 = 41;
}

/// One expression of a rule.
#[derive(Clone, Debug)]
pub(crate) enum Expression {
    /// `meta KEY` into a register.
    Meta {
        key: u32,
        register: u32,
    },
    /// Bytes of the network (1) or transport (2) header into a register.
    Payload {
        base: u32,
        offset: u32,
        length: u32,
        register: u32,
    },
    /// Register 1 compared with bytes: equal (0), not equal (1).
    Compare {
        operator: u32,
        value: Vec<u8>,
    },
    /// Register 1 AND mask.
    Mask {
        mask: Vec<u8>,
    },
    /// Type of the destination address by the routing tables, into register 1.
    DestinationType,
    /// Type of the source address by the routing tables, into register 1.
    SourceType,
    /// `ct KEY` into a register.
    Conntrack {
        key: u32,
        register: u32,
    },
    /// `ct original proto-dst` into a register: the port that the connection's first packet was sent to.
    OriginalPort {
        register: u32,
    },
    /// The key at `source` looked up in a map; its data go to register 1 on. No entry: the rule does not match.
    Lookup {
        map: &'static str,
        id: u32,
        source: u32,
    },
    /// Matches if the value in register 1 is in a set.
    InSet {
        set: &'static str,
        id: u32,
    },
    /// The verdict that a map has for the value in register 1; without one the rule does not match.
    VerdictOf {
        map: &'static str,
        id: u32,
    },
    /// Destination NAT to the address in register 1 and the port in the register behind it.
    DestinationNat {
        family: u32,
        port_register: u32,
    },
    /// Destination NAT to the own address of the link that the packet came by, and the port in a register.
    Redirect {
        port_register: u32,
    },
    /// A copy of the packet goes to the next hop in register 1.
    Duplicate,
    /// A constant into a register.
    Immediate {
        register: u32,
        value: Vec<u8>,
    },
    Masquerade,
    Accept,
    Drop,
}

pub(crate) const META_PROTOCOL_FAMILY: u32 = 15;
pub(crate) const META_TRANSPORT: u32 = 16;
pub(crate) const META_INPUT_NAME: u32 = 6;
pub(crate) const META_OUTPUT_NAME: u32 = 7;
pub(crate) const CT_STATE: u32 = 0;
pub(crate) const CT_DIRECTION: u32 = 1;
pub(crate) const CT_STATUS: u32 = 2;
pub(crate) const CT_PROTOCOL: u32 = 10;
/// The first of the 4-byte registers; it begins where register 1 does.
pub(crate) const REGISTER_32: u32 = 8;

impl Expression {
    fn encode(&self, out: &mut Batch) {
        let mut expression = |name: &str, data: &dyn Fn(&mut Batch)| {
            out.string(1, name).nested(2, |batch| data(batch));
        };
        match self {
            Expression::Meta { key, register } => expression("meta", &|data| {
                data.be32(1, *register).be32(2, *key);
            }),
            Expression::Payload { base, offset, length, register } => expression("payload", &|data| {
                data.be32(1, *register).be32(2, *base).be32(3, *offset).be32(4, *length);
            }),
            Expression::Compare { operator, value } => expression("cmp", &|data| {
                data.be32(1, 1).be32(2, *operator).nested(3, |inner| {
                    inner.bytes(1, value);
                });
            }),
            Expression::Mask { mask } => expression("bitwise", &|data| {
                data.be32(1, 1)
                    .be32(2, 1)
                    .be32(3, mask.len() as u32)
                    .nested(4, |inner| {
                        inner.bytes(1, mask);
                    })
                    .nested(5, |inner| {
                        inner.bytes(1, &vec![0; mask.len()]);
                    });
            }),
            Expression::DestinationType | Expression::SourceType => expression("fib", &|data| {
                const ADDRESS_TYPE: u32 = 3;
                let by = if matches!(self, Expression::SourceType) { 1 } else { 2 };
                data.be32(1, 1).be32(2, ADDRESS_TYPE).be32(3, by);
            }),
            Expression::Conntrack { key, register } => expression("ct", &|data| {
                data.be32(1, *register).be32(2, *key);
            }),
            Expression::OriginalPort { register } => expression("ct", &|data| {
                const DESTINATION_PORT: u32 = 12;
                const ORIGINAL: u8 = 0;
                data.be32(1, *register).be32(2, DESTINATION_PORT).bytes(3, &[ORIGINAL]);
            }),
            Expression::Lookup { map, id, source } => expression("lookup", &|data| {
                data.string(1, map).be32(4, *id).be32(2, *source).be32(3, 1);
            }),
            Expression::InSet { set, id } => expression("lookup", &|data| {
                data.string(1, set).be32(4, *id).be32(2, 1);
            }),
            Expression::VerdictOf { map, id } => expression("lookup", &|data| {
                data.string(1, map).be32(4, *id).be32(2, 1).be32(3, 0);
            }),
            Expression::DestinationNat { family, port_register } => expression("nat", &|data| {
                const DESTINATION: u32 = 1;
                data.be32(1, DESTINATION).be32(2, *family).be32(3, 1).be32(5, *port_register).be32(7, 3);
            }),
            Expression::Redirect { port_register } => expression("redir", &|data| {
                data.be32(1, *port_register);
            }),
            Expression::Duplicate => expression("dup", &|data| {
                data.be32(1, 1);
            }),
            Expression::Immediate { register, value } => expression("immediate", &|data| {
                data.be32(1, *register).nested(2, |inner| {
                    inner.bytes(1, value);
                });
            }),
            Expression::Masquerade => expression("masq", &|_| {}),
            Expression::Accept => verdict(out, 1),
            Expression::Drop => verdict(out, 0),
        }
    }
}

fn verdict(out: &mut Batch, code: u32) {
    out.string(1, "immediate").nested(2, |data| {
        data.be32(1, 0).nested(2, |inner| {
            inner.nested(2, |verdict| {
                verdict.be32(1, code);
            });
        });
    });
}
