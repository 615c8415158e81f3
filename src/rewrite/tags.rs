//! How tags change. Pure.

/// A change of tags: first all are replaced, if that is wanted, then some added and some taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagChange {
    /// All tags from now on, in the place of those that there are.
    pub set: Option<Vec<String>>,
    /// Tags to add.
    pub add: Vec<String>,
    /// Tags to take away.
    pub remove: Vec<String>,
}

impl TagChange {
    /// Returns the new tags in the order of the old ones, each once.
    #[must_use]
    pub fn apply(&self, tags: &[String]) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        for tag in self.set.as_deref().unwrap_or(tags).iter().chain(&self.add) {
            if !out.contains(tag) && !self.remove.contains(tag) {
                out.push(tag.clone());
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_set_added_and_removed_each_once() {
        let all = |tags: &[&str]| tags.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>();
        for (set, add, remove, expected) in [
            (None, &["c"][..], &[][..], &["a", "b", "c"][..]),
            (None, &["a"], &["b"], &["a"]),
            (Some(&["x", "x"][..]), &["y"], &[], &["x", "y"]),
            (Some(&[]), &[], &[], &[]),
        ] {
            let change = TagChange { set: set.map(all), add: all(add), remove: all(remove) };
            assert_eq!(change.apply(&all(&["a", "b"])), all(expected));
        }
    }
}
