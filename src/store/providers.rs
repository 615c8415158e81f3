//! What is known of providers, as one table: how their hosts name the region, how they address buckets, which classes
//! of storage they take. Each line has its source.
//!
//! A host that is in no line is a server of somebody's own (MinIO, Ceph, Garage, Scality): path addressing, us-east-1
//! until it names another region. Pure: nothing is looked up.

/// What is known of one provider.
#[derive(Debug)]
pub(crate) struct Provider {
    /// As people call it.
    pub(crate) name: &'static str,
    /// Its hosts; `{region}` stands for one label, the region's name, `{any}` for anything.
    hosts: &'static [&'static str],
    /// The region where the host does not name it; `None`: nothing is known.
    region: Option<&'static str>,
    /// `auto` addressing puts the bucket into the host's name, unless it has dots.
    pub(crate) is_virtual: bool,
    /// Classes of storage that it takes; empty where it has one only.
    pub(crate) classes: &'static [&'static str],
    /// Where this is written.
    #[cfg_attr(not(test), expect(dead_code, reason = "for who reads the table"))]
    source: &'static str,
}

/// The first line that fits a host counts.
pub(crate) const PROVIDERS: &[Provider] = &[
    Provider {
        name: "AWS",
        hosts: &[
            "s3.{region}.amazonaws.com",
            "s3.dualstack.{region}.amazonaws.com",
            "s3-fips.{region}.amazonaws.com",
            "s3-fips.dualstack.{region}.amazonaws.com",
            "s3-{region}.amazonaws.com",
            "s3.{region}.amazonaws.com.cn",
            "s3.dualstack.{region}.amazonaws.com.cn",
            "{any}.amazonaws.com",
            "{any}.amazonaws.com.cn",
        ],
        region: None,
        is_virtual: true,
        classes: &[
            "STANDARD",
            "STANDARD_IA",
            "ONEZONE_IA",
            "INTELLIGENT_TIERING",
            "GLACIER_IR",
            "GLACIER",
            "DEEP_ARCHIVE",
            "REDUCED_REDUNDANCY",
        ],
        source: "https://docs.aws.amazon.com/general/latest/gr/s3.html",
    },
    Provider {
        name: "Scaleway",
        hosts: &["s3.{region}.scw.cloud"],
        region: None,
        is_virtual: false,
        classes: &["STANDARD", "ONEZONE_IA", "GLACIER"],
        source: "https://www.scaleway.com/en/docs/object-storage/api-cli/using-api-call-list/",
    },
    Provider {
        name: "Backblaze B2",
        hosts: &["s3.{region}.backblazeb2.com"],
        region: None,
        is_virtual: false,
        classes: &[],
        source: "https://www.backblaze.com/docs/cloud-storage-s3-compatible-api",
    },
    Provider {
        name: "Clever Cloud Cellar",
        hosts: &["{any}.services.clever-cloud.com"],
        region: None, // a Ceph, which takes any region
        is_virtual: false,
        classes: &[],
        source: "https://www.clever.cloud/developers/doc/addons/cellar/",
    },
    Provider {
        name: "Google Cloud Storage",
        hosts: &["storage.googleapis.com"],
        region: Some("auto"),
        is_virtual: false,
        classes: &["STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"],
        source: "https://cloud.google.com/storage/docs/aws-simple-migration",
    },
    Provider {
        name: "Wasabi",
        hosts: &["s3.{region}.wasabisys.com", "s3.wasabisys.com"],
        region: Some("us-east-1"),
        is_virtual: false,
        classes: &[],
        source: "https://docs.wasabi.com/docs/what-are-the-service-urls-for-wasabis-different-storage-regions",
    },
    Provider {
        name: "OVHcloud",
        hosts: &[
            "s3.{region}.io.cloud.ovh.net",
            "s3.{region}.io.cloud.ovh.us",
            "s3.{region}.perf.cloud.ovh.net",
            "s3.{region}.cloud.ovh.net",
        ],
        region: None,
        is_virtual: false,
        // All names of AWS are taken, and mapped to three classes.
        classes: &[
            "EXPRESS_ONEZONE",
            "STANDARD",
            "STANDARD_IA",
            "ONEZONE_IA",
            "INTELLIGENT_TIERING",
            "GLACIER_IR",
            "GLACIER",
            "DEEP_ARCHIVE",
        ],
        source: "https://help.ovhcloud.com/csm/en-public-cloud-storage-s3-location",
    },
    Provider {
        name: "Cloudflare R2",
        hosts: &["{any}.r2.cloudflarestorage.com"],
        region: Some("auto"),
        is_virtual: false,
        classes: &["STANDARD", "STANDARD_IA"],
        source: "https://developers.cloudflare.com/r2/api/s3/api/",
    },
    Provider {
        name: "Hetzner",
        hosts: &["{region}.your-objectstorage.com"],
        region: None,
        is_virtual: false,
        classes: &[],
        source: "https://docs.hetzner.com/storage/object-storage/supported-actions/",
    },
    Provider {
        name: "DigitalOcean Spaces",
        hosts: &["{region}.digitaloceanspaces.com"],
        region: None,
        is_virtual: false,
        classes: &[],
        source: "https://docs.digitalocean.com/products/spaces/reference/s3-compatibility/",
    },
    Provider {
        name: "Linode",
        hosts: &["{region}.linodeobjects.com"],
        region: None,
        is_virtual: false,
        classes: &[],
        source: "https://techdocs.akamai.com/cloud-computing/docs/access-buckets-and-files-through-urls",
    },
    Provider {
        name: "Exoscale",
        hosts: &["sos-{region}.exo.io"],
        region: None,
        is_virtual: false,
        classes: &[],
        source: "https://community.exoscale.com/product/storage/object-storage/",
    },
    Provider {
        name: "Aruba Cloud",
        hosts: &["s3.{region}.storage.cloud.it"],
        region: None,
        is_virtual: false,
        classes: &[],
        source: "https://kb.arubacloud.com/en/storage/object-storage.aspx",
    },
    Provider {
        name: "Outscale",
        hosts: &["oos.{region}.outscale.com"],
        region: None,
        is_virtual: false,
        classes: &[],
        source: "https://docs.outscale.com/en/userguide/About-OOS.html",
    },
];

/// Finds the provider of a host, and the region that the host or the provider names.
pub(crate) fn of_host(host: &str) -> Option<(&'static Provider, Option<&str>)> {
    PROVIDERS.iter().find_map(|provider| {
        let region = provider.hosts.iter().find_map(|pattern| region_in(host, pattern))?;
        Some((provider, region.or(provider.region)))
    })
}

/// Tells whether a host is one of AWS, whose own keys a machine may have.
pub(crate) fn is_aws(host: &str) -> bool {
    of_host(host).is_some_and(|(provider, _)| provider.name == "AWS")
}

/// Returns the host that serves another region, where that is known and is another host.
///
/// Only AWS serves each region at its own host and refers to it; `host` may begin with the bucket's name.
pub(crate) fn host_of_region(host: &str, region: &str, other: &str) -> Option<String> {
    let host = is_aws(host).then_some(host)?;
    let (before, after) = host.rsplit_once(&format!(".{region}."))?;
    Some(format!("{before}.{other}.{after}"))
}

/// Matches a host against a pattern; the inner value is the region it names.
fn region_in<'a>(host: &'a str, pattern: &str) -> Option<Option<&'a str>> {
    if let Some((before, after)) = pattern.split_once("{region}") {
        let region = host.strip_prefix(before)?.strip_suffix(after)?;
        return (!region.is_empty() && !region.contains('.')).then_some(Some(region));
    }
    let fits = match pattern.split_once("{any}") {
        Some((before, after)) => host.strip_prefix(before).is_some_and(|rest| rest.ends_with(after)),
        None => host == pattern,
    };
    fits.then_some(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_those_of_their_provider() {
        let of = |host| of_host(host).map(|(provider, region)| (provider.name, region));
        assert_eq!(of("s3.eu-west-3.amazonaws.com"), Some(("AWS", Some("eu-west-3"))));
        assert_eq!(of("s3-fips.dualstack.us-gov-west-1.amazonaws.com"), Some(("AWS", Some("us-gov-west-1"))));
        assert_eq!(of("s3-eu-west-1.amazonaws.com"), Some(("AWS", Some("eu-west-1"))));
        assert_eq!(of("s3.cn-north-1.amazonaws.com.cn"), Some(("AWS", Some("cn-north-1"))));
        assert_eq!(of("s3.amazonaws.com"), Some(("AWS", None)));
        assert_eq!(of("s3.wasabisys.com"), Some(("Wasabi", Some("us-east-1"))));
        assert_eq!(of("abc.eu.r2.cloudflarestorage.com"), Some(("Cloudflare R2", Some("auto"))));
        for own in ["localhost", "::1", "minio.example.com", "s3.eu-west-3.amazonaws.com.example.com", "amazonaws.com"]
        {
            assert_eq!(of(own), None, "{own}");
        }
    }

    #[test]
    fn every_line_has_its_source() {
        for provider in PROVIDERS {
            assert!(provider.source.starts_with("https://") && !provider.hosts.is_empty(), "{}", provider.name);
        }
    }

    #[test]
    fn another_region_of_aws_is_at_another_host() {
        let of = |host, other| host_of_region(host, "eu-west-3", other);
        assert_eq!(of("s3.eu-west-3.amazonaws.com", "us-west-2").as_deref(), Some("s3.us-west-2.amazonaws.com"));
        assert_eq!(of("b.s3.eu-west-3.amazonaws.com", "us-west-2").as_deref(), Some("b.s3.us-west-2.amazonaws.com"));
        assert_eq!(of("b.s3.amazonaws.com", "us-west-2"), None);
        assert_eq!(of("s3.eu-west-3.example.com", "us-west-2"), None);
    }
}
