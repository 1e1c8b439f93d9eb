//! Lists by pages.

use serde::{Deserialize, Serialize};

/// Which way a list runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum SortOrder {
    /// Smallest first.
    #[default]
    Asc,
    /// Greatest first.
    Desc,
}

/// What clusters are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SortBy {
    /// Their names.
    #[default]
    Name,
    /// When they were made.
    CreatedAt,
    /// When they were deleted.
    DeletedAt,
}

/// The query of a list. Empty values count as absent: clients send `pagination.page=`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageQuery {
    /// A token from the page before.
    #[serde(rename = "pagination.page", default, skip_serializing_if = "Option::is_none")]
    pub page: Option<String>,
    /// Most items of a page.
    #[serde(rename = "pagination.limit", default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// An instant of the past. Refused: lists are of now.
    #[serde(rename = "pagination.as_of_time", default, skip_serializing_if = "Option::is_none")]
    pub as_of_time: Option<String>,
    /// `ASC` or `DESC`.
    #[serde(rename = "pagination.sort_order", default, skip_serializing_if = "Option::is_none")]
    pub sort_order: Option<String>,
    /// `NAME`, `CREATED_AT` or `DELETED_AT`; for clusters only.
    #[serde(rename = "pagination.sort_by", default, skip_serializing_if = "Option::is_none")]
    pub sort_by: Option<String>,
    /// Whether clusters that are gone are shown too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_inactive: Option<String>,
}

/// How to go on reading a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pagination {
    /// The token of the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_page: Option<String>,
}
