//! Lists by pages. A token names the last item shown, so a list that changes meanwhile loses and repeats nothing.

use api::{PageQuery, Pagination, SortBy, SortOrder};
use serde::de::DeserializeOwned;
use serde::de::value::{Error as ValueError, StrDeserializer};

use crate::Refusal;

const LIMIT_MAX: usize = 500;
const TOKEN_BYTES_MAX: usize = 2_048;

/// Which part of a list is asked for.
pub(crate) struct Page {
    kind: &'static str,
    after: Option<String>,
    limit: usize,
    order: SortOrder,
    /// For clusters.
    pub(crate) sort_by: SortBy,
}

impl Page {
    /// Reads the query of a list of this kind.
    pub(crate) fn read(kind: &'static str, query: &PageQuery) -> Result<Self, Refusal> {
        if given(query.as_of_time.as_ref()).is_some() {
            return Err(Refusal::unbuilt("lists of the past (pagination.as_of_time) are"));
        }
        let limit = match given(query.limit.as_ref()) {
            None | Some("0") => LIMIT_MAX,
            Some(text) => match text.parse::<i32>() {
                Ok(number) if number > 0 => usize::try_from(number).unwrap_or(LIMIT_MAX).min(LIMIT_MAX),
                _ => return Err(Refusal::invalid("pagination.limit is a number from 1 to 500")),
            },
        };
        let order = word("pagination.sort_order", query.sort_order.as_ref())?;
        let sort_by = word("pagination.sort_by", query.sort_by.as_ref())?;
        let mut page = Self { kind, after: None, limit, order, sort_by };
        if let Some(token) = given(query.page.as_ref()) {
            page.after = Some(page.open(token)?);
        }
        Ok(page)
    }

    /// Sorts by the key, unique in the list, and keeps the part that was asked for.
    pub(crate) fn cut<T>(&self, items: impl Iterator<Item = (String, T)>) -> (Vec<T>, Pagination) {
        let mut rest: Vec<(String, T)> = items
            .filter(|(key, _)| match (&self.after, self.order) {
                (None, _) => true,
                (Some(after), SortOrder::Asc) => key > after,
                (Some(after), SortOrder::Desc) => key < after,
            })
            .collect();
        rest.sort_by(|(left, _), (right, _)| match self.order {
            SortOrder::Asc => left.cmp(right),
            SortOrder::Desc => right.cmp(left),
        });
        let is_last = rest.len() <= self.limit;
        rest.truncate(self.limit);
        let last = rest.last().filter(|_| !is_last).map(|(key, _)| key);
        let next_page = last.map(|key| hex::encode(format!("{}{key}", self.mark())));
        (rest.into_iter().map(|(_, item)| item).collect(), Pagination { next_page })
    }

    /// A token of another list or order must not be taken for one of this.
    fn mark(&self) -> String {
        format!("{}\n{:?}\n{:?}\n", self.kind, self.sort_by, self.order)
    }

    fn open(&self, token: &str) -> Result<String, Refusal> {
        let text = Some(token)
            .filter(|token| token.len() <= TOKEN_BYTES_MAX)
            .and_then(|token| hex::decode(token).ok())
            .and_then(|bytes| String::from_utf8(bytes).ok());
        text.as_deref()
            .and_then(|text| text.strip_prefix(&self.mark()))
            .map(str::to_owned)
            .ok_or_else(|| Refusal::invalid("pagination.page is not a token of this list"))
    }
}

/// A query value; an empty one counts as absent.
pub(crate) fn given(value: Option<&String>) -> Option<&str> {
    value.map(String::as_str).filter(|value| !value.is_empty())
}

fn word<T: DeserializeOwned + Default>(what: &str, value: Option<&String>) -> Result<T, Refusal> {
    match given(value) {
        None => Ok(T::default()),
        Some(text) => T::deserialize(StrDeserializer::<ValueError>::new(text))
            .map_err(|_| Refusal::invalid(format_args!("{what} has an unknown value"))),
    }
}
