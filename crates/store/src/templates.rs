//! What new clusters are copied from.

use model::Template;

use crate::file::{Batch, Table};
use crate::{Error, Store};

impl Store {
    /// What the template of this major version of PostgreSQL must be; none where none was made.
    pub fn template(&self, major: u32) -> Result<Option<Template>, Error> {
        self.file.read(Table::Templates, &major.to_string())
    }

    /// Keeps what a template that was just made is.
    pub fn put_template(&self, major: u32, template: &Template) -> Result<(), Error> {
        let _writer = self.write();
        let mut batch = Batch::default();
        self.file.put(&mut batch, Table::Templates, &major.to_string(), template)?;
        self.file.commit(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::open;

    #[test]
    fn each_major_version_has_a_template_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let template = |text: &str| Template { made_with: text.to_owned(), parts: vec![text.to_owned()] };
        let store = open(folder.path());
        for (major, text) in [(15, "old"), (17, "seventeen"), (15, "new")] {
            store.put_template(major, &template(text)).unwrap();
        }
        drop(store);
        let store = open(folder.path());
        let kept = [14, 15, 17].map(|major| store.template(major).unwrap());
        assert_eq!(kept, [None, Some(template("new")), Some(template("seventeen"))]);
    }
}
