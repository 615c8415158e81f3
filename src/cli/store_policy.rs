//! `store policy`: the least rights that a key needs, as a policy in the words of AWS.
//!
//! A backup reads, lists and puts below its prefix; it deletes nothing. Pure: nothing is sent, and no key is looked for.

use clap::ValueEnum;
use serde_json::{Value, json};

use crate::store::StoreLocation;

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Job {
    /// `create` and `backup`; all that `mount` does, too.
    Backup,
    /// `mount`, `ls`, `cat`, `restore`, `check`: whatever only reads.
    Mount,
    /// `forget`, `prune`, `key passwd` and `key rm`; all that `backup` does, too.
    Prune,
}

/// Whom a policy is for, and what else it depends on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Circumstances<'a> {
    /// Makes it the policy of a bucket; without, it is one to attach to a user or a role.
    pub(crate) principal: Option<&'a str>,
    /// The key of the key service by which the bucket is encrypted.
    pub(crate) kms_key: Option<&'a str>,
}

/// The least policy for a job; `None` for a folder.
pub(crate) fn least(job: Job, location: &StoreLocation, circumstances: Circumstances<'_>) -> Option<Value> {
    let StoreLocation::S3 { host, bucket, prefix, .. } = location else { return None };
    let partition = if host.ends_with(".amazonaws.com.cn") { "aws-cn" } else { "aws" };
    let bucket = format!("arn:{partition}:s3:::{bucket}");
    let below = if prefix.is_empty() { "*".to_owned() } else { format!("{prefix}/*") };
    let mut list = json!({"Sid": "List", "Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [bucket]});
    if !prefix.is_empty() {
        list["Condition"] = json!({"StringLike": {"s3:prefix": [below]}});
    }
    let (actions, kms): (&[_], &[_]) = match job {
        Job::Mount => (&["s3:GetObject"], &["kms:Decrypt"]),
        Job::Backup => (&["s3:GetObject", "s3:PutObject"], &["kms:Decrypt", "kms:GenerateDataKey"]),
        Job::Prune => (&["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], &["kms:Decrypt", "kms:GenerateDataKey"]),
    };
    let objects = json!({
        "Sid": "Objects", "Effect": "Allow", "Action": actions, "Resource": [format!("{bucket}/{below}")],
    });
    let mut statements = vec![list, objects];
    if let (Some(key), None) = (circumstances.kms_key, circumstances.principal) {
        statements.push(json!({"Sid": "Key", "Effect": "Allow", "Action": kms, "Resource": [key]}));
    }
    if let Some(principal) = circumstances.principal {
        statements.iter_mut().for_each(|statement| statement["Principal"] = json!({"AWS": [principal]}));
    }
    Some(json!({"Version": "2012-10-17", "Statement": statements}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actions(job: Job) -> Value {
        let policy = least(job, &"s3://h/b/p/q".parse().unwrap(), Circumstances::default()).unwrap();
        policy["Statement"][1]["Action"].clone()
    }

    #[test]
    fn only_prune_may_delete_and_only_backup_may_put() {
        assert_eq!(actions(Job::Mount), json!(["s3:GetObject"]));
        assert_eq!(actions(Job::Backup), json!(["s3:GetObject", "s3:PutObject"]));
        assert_eq!(actions(Job::Prune), json!(["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]));
    }

    #[test]
    fn a_policy_ends_at_the_prefix() {
        let of = |location: &str| least(Job::Backup, &location.parse().unwrap(), Circumstances::default()).unwrap();
        let policy = of("s3://h/b/p/q");
        assert_eq!(policy["Statement"][0]["Resource"], json!(["arn:aws:s3:::b"]));
        assert_eq!(policy["Statement"][0]["Condition"], json!({"StringLike": {"s3:prefix": ["p/q/*"]}}));
        assert_eq!(policy["Statement"][1]["Resource"], json!(["arn:aws:s3:::b/p/q/*"]));
        let whole = of("s3://s3.cn-north-1.amazonaws.com.cn/b");
        assert_eq!(whole["Statement"][0]["Condition"], Value::Null);
        assert_eq!(whole["Statement"][1]["Resource"], json!(["arn:aws-cn:s3:::b/*"]));
        assert!(least(Job::Mount, &"/srv/k".parse().unwrap(), Circumstances::default()).is_none());
    }

    #[test]
    fn a_policy_of_a_bucket_names_whom_and_one_of_a_user_the_key_service() {
        let location = "s3://h/b".parse().unwrap();
        let named = Circumstances { principal: Some("arn:aws:iam::1:user/u"), kms_key: Some("arn:key") };
        let policy = least(Job::Mount, &location, named).unwrap();
        assert_eq!(policy["Statement"][1]["Principal"], json!({"AWS": ["arn:aws:iam::1:user/u"]}));
        assert_eq!(policy["Statement"].as_array().unwrap().len(), 2);
        let policy = least(Job::Mount, &location, Circumstances { principal: None, ..named }).unwrap();
        assert_eq!(policy["Statement"][2]["Action"], json!(["kms:Decrypt"]));
    }
}
