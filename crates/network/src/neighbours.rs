//! The names of a network's containers, written down where each of its resolvers finds them.
//!
//! `NETWORK/names/NAME/CONTAINER` is a symbolic link whose text is the container's addresses, `NETWORK/addresses/ADDRESS` one
//! whose text is container and name: a query costs a look into one small directory, however many containers there are.
//! Monitors write their own entries. Those of a monitor that was killed stay until they are cleaned up: who reads them asks
//! whether the container still runs.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::Endpoint;

/// The names of all networks, below one directory.
#[derive(Clone, Debug)]
pub struct Neighbours {
    directory: PathBuf,
}

/// Who has a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub container: String,
    pub addresses: Vec<IpAddr>,
}

impl Neighbours {
    pub fn new(directory: &Path) -> Neighbours {
        Neighbours { directory: directory.to_owned() }
    }

    /// Makes a container known by the names of its endpoint. Names that a query cannot hold are left out.
    pub fn enter(&self, container: &str, endpoint: &Endpoint) -> io::Result<()> {
        let addresses: Vec<String> = endpoint.addresses().map(|(address, _)| address.to_string()).collect();
        let network = self.directory.join(&endpoint.network.id);
        for name in endpoint.names.iter().filter_map(|name| key(name)) {
            write(&network.join("names").join(name), container, &addresses.join(","))?;
        }
        if let Some(name) = endpoint.names.first() {
            for address in &addresses {
                write(&network.join("addresses"), address, &format!("{container} {name}"))?;
            }
        }
        Ok(())
    }

    /// Takes back what [`Neighbours::enter`] wrote, as far as it is there.
    pub fn leave(&self, container: &str, endpoint: &Endpoint) {
        let network = self.directory.join(&endpoint.network.id);
        for name in endpoint.names.iter().filter_map(|name| key(name)) {
            let place = network.join("names").join(name);
            let _ = fs::remove_file(place.join(container));
            // Others may have the name, too.
            let _ = fs::remove_dir(place);
        }
        for (address, _) in endpoint.addresses() {
            // It may be another's by now.
            let place = network.join("addresses").join(address.to_string());
            if fs::read_link(&place).is_ok_and(|text| text.to_string_lossy().starts_with(container)) {
                let _ = fs::remove_file(place);
            }
        }
        for place in [network.join("names"), network.join("addresses"), network] {
            let _ = fs::remove_dir(place);
        }
    }

    /// Who has a name in a network. Letters' case does not matter.
    pub fn find(&self, network: &str, name: &str) -> Vec<Neighbour> {
        let Some(name) = key(name) else { return Vec::new() };
        let entries = fs::read_dir(self.directory.join(network).join("names").join(name)).into_iter().flatten().flatten();
        let neighbour = |entry: fs::DirEntry| {
            let text = fs::read_link(entry.path()).ok()?;
            let addresses = text.to_str()?.split(',').map(str::parse).collect::<Result<_, _>>().ok()?;
            Some(Neighbour { container: entry.file_name().into_string().ok()?, addresses })
        };
        entries.filter_map(neighbour).collect()
    }

    /// Whose an address of a network is: container and name.
    pub fn name_of(&self, network: &str, address: IpAddr) -> Option<(String, String)> {
        let text = fs::read_link(self.directory.join(network).join("addresses").join(address.to_string())).ok()?;
        text.to_str()?.split_once(' ').map(|(container, name)| (container.to_owned(), name.to_owned()))
    }
}

/// The name of a name's directory; `None` for what is no name.
fn key(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let fits = !name.is_empty() && name.len() <= 253 && !name.contains(['/', '\0']) && !matches!(name, "." | "..");
    fits.then(|| name.to_ascii_lowercase())
}

/// Replaces an entry.
fn write(directory: &Path, name: &str, text: &str) -> io::Result<()> {
    let place = directory.join(name);
    // Whoever leaves last may take the directory away in between.
    for _ in 0..16 {
        match symlink(text, &place) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(directory)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match fs::remove_file(&place) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            },
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::WouldBlock, format!("{} changes all the time", place.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Subnet;
    use crate::{Bridge, Driver, Network, Range};

    fn endpoint(ipv4: [u8; 4], names: &[&str]) -> Endpoint {
        let subnet: Subnet = "10.0.0.0/24".parse().unwrap();
        Endpoint {
            id: String::new(),
            network: Network {
                id: "net".into(),
                name: "net".into(),
                driver: Driver::Bridge(Bridge {
                    name: "br".into(),
                    inter_container: true,
                    masquerade: true,
                    gateways: Default::default(),
                }),
                table: "dhow".into(),
                ipv4: Some(Range { subnet, gateway: Some(subnet.first_host()) }),
                ipv6: None,
                mtu: None,
                internal: false,
            },
            ipv4: Some(ipv4.into()),
            ipv6: None,
            mac: [0; 6],
            link: String::new(),
            interface: None,
            priority: 0,
            links: Vec::new(),
            publish: crate::ports::Policy::Obey,
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn names_come_and_go_with_their_containers() {
        let dir = tempfile::tempdir().unwrap();
        let neighbours = Neighbours::new(dir.path());
        let (one, two) = (endpoint([10, 0, 0, 2], &["One", "web", "../x", ""]), endpoint([10, 0, 0, 3], &["two", "web"]));
        neighbours.enter("c1", &one).unwrap();
        neighbours.enter("c2", &two).unwrap();
        neighbours.enter("c2", &two).unwrap();
        let found = |name: &str| {
            let mut found: Vec<String> = neighbours.find("net", name).into_iter().map(|found| found.container).collect();
            found.sort();
            found
        };
        assert_eq!(found("WEB."), ["c1", "c2"]);
        assert_eq!(found("one"), ["c1"]);
        assert_eq!(neighbours.find("net", "two")[0].addresses, ["10.0.0.3".parse::<IpAddr>().unwrap()]);
        assert_eq!((found("nobody"), found(".."), found("../x")), (vec![], vec![], vec![]));
        assert_eq!(neighbours.name_of("net", [10, 0, 0, 3].into()), Some(("c2".into(), "two".into())));
        neighbours.leave("c2", &two);
        assert_eq!((found("web"), found("two")), (vec!["c1".to_owned()], vec![]));
        neighbours.leave("c1", &one);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "something is left");
    }
}
