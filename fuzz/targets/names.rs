//! Names, handles, ranges and API keys as text of strangers.

use identity::api_key::ApiKeyText;
use model::{AddressRange, ClusterHandle, ClusterName, DatabaseName, RoleName};

/// Runs the target on an input.
pub(crate) fn run(bytes: &[u8]) {
    let text = crate::text(bytes);
    if let Ok(handle) = text.parse::<ClusterHandle>() {
        // One spelling for each cluster.
        assert_eq!(handle.to_string(), text);
    }
    if let Ok(range) = text.parse::<AddressRange>() {
        assert_eq!(range.to_string().parse::<AddressRange>(), Ok(range));
        assert!(range.contains(range.address()));
    }
    if let Ok(name) = text.parse::<ClusterName>() {
        assert_eq!(name.as_str(), text);
    }
    if let Ok(name) = text.parse::<RoleName>() {
        assert!(!name.as_str().contains('\0'));
    }
    let _ = text.parse::<DatabaseName>();
    if let Some(key) = ApiKeyText::parse(text) {
        assert_eq!(key.expose(), text);
    }
}
