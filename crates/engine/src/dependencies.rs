//! Which containers need which others to run, and the order in which a host that came up starts them.

use std::collections::HashMap;

use crate::container::Container;
use crate::{Engine, Result};

impl Engine {
    /// Containers so that each comes after those whose namespaces it joins and those that it has links to. dockerd knows the
    /// links alone: there a container in another's network stays down when it happens to be tried first.
    pub(crate) fn in_starting_order(&self, containers: Vec<Container>) -> Result<Vec<Container>> {
        let mut needs = Vec::with_capacity(containers.len());
        let places: HashMap<&str, usize> =
            containers.iter().enumerate().map(|(place, container)| (container.id.0.as_str(), place)).collect();
        let links = self.link_targets()?;
        for container in &containers {
            let joined = container.joined().filter_map(|reference| {
                let is_meant = |other: &Container| other.name == reference || other.id.0.starts_with(reference);
                places.get(reference).copied().or_else(|| containers.iter().position(is_meant))
            });
            let linked = links.get(&container.id.0).into_iter().flatten().filter_map(|id| places.get(id.as_str()).copied());
            needs.push(joined.chain(linked).collect());
        }
        let order = ordered(&needs);
        let mut containers: Vec<Option<Container>> = containers.into_iter().map(Some).collect();
        Ok(order.into_iter().filter_map(|place| containers[place].take()).collect())
    }
}

/// Places so that each comes after those it needs. In a circle, which no start can satisfy, somebody comes first.
fn ordered(needs: &[Vec<usize>]) -> Vec<usize> {
    let mut order = Vec::with_capacity(needs.len());
    let mut seen = vec![false; needs.len()];
    for first in 0..needs.len() {
        // Places on the way, each with how many of its needs have been looked at.
        let mut way = Vec::new();
        if !std::mem::replace(&mut seen[first], true) {
            way.push((first, 0));
        }
        while let Some((place, looked)) = way.last_mut() {
            match needs[*place].get(*looked).copied() {
                Some(needed) => {
                    *looked += 1;
                    if !std::mem::replace(&mut seen[needed], true) {
                        way.push((needed, 0));
                    }
                }
                None => {
                    order.push(*place);
                    way.pop();
                }
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_comes_after_what_it_needs() {
        assert_eq!(ordered(&[vec![], vec![], vec![]]), [0, 1, 2]);
        assert_eq!(ordered(&[vec![2], vec![0, 2], vec![]]), [2, 0, 1]);
        // A circle, and one that needs it.
        assert_eq!(ordered(&[vec![1], vec![0], vec![0]]), [1, 0, 2]);
        // As deep as there are containers.
        let chain: Vec<Vec<usize>> = (0..10_000).map(|place| if place < 9_999 { vec![place + 1] } else { vec![] }).collect();
        assert_eq!(ordered(&chain)[0], 9_999);
    }
}
