//! What `status.json` says, gathered from all who count.

use serde_json::{Value, json};

use super::View;

impl View {
    /// Writes `status.json` anew.
    pub(super) fn renew_status(&self) {
        let inner = &*self.0;
        let mut value = inner.status.shown();
        let counts = inner.store.counts();
        value["store"] = json!({
            "gets": counts.gets, "lists": counts.lists, "http_requests": counts.http_requests,
            "http_retries": counts.http_retries, "slow_downs": counts.slow_downs, "bytes_down": counts.bytes_down,
        });
        value["caches"] = self.caches();
        value["snapshots"] = inner.roots.shown();
        value["inodes"] = inner.inodes.len().into();
        value["memory_limit_bytes"] = inner.options.memory_bytes.into();
        value["caches_limit_bytes"] = inner.reader.limit().left().into();
        inner.status_file.renew(&value, inner.status.unix_ms());
    }

    fn caches(&self) -> Value {
        let memory = self
            .0
            .reader
            .counts()
            .map(|(name, counts)| (name.to_owned(), json!({"hits": counts.hits, "misses": counts.misses})));
        let disk = self.0.reader.disk_counts();
        let disk = disk.map(|counts| json!({"hits": counts.hits, "misses": counts.misses, "bytes": counts.bytes}));
        let mut caches = serde_json::Map::from_iter(memory);
        caches.insert("disk".to_owned(), disk.into());
        Value::Object(caches)
    }
}
