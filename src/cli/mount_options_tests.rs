//! What `-o` understands.

use super::*;

fn parse(lists: &[&str]) -> Result<MountOptions, CliError> {
    let lists: Vec<String> = lists.iter().map(|list| (*list).to_owned()).collect();
    MountOptions::parse(&lists)
}

#[test]
fn what_fstab_and_mount_add_is_let_through() {
    let line = "rw,nosuid,nodev,noauto,nofail,_netdev,user,x-systemd.automount,x-gvfs-show";
    assert_eq!(parse(&[line]).unwrap(), MountOptions::default());
    assert_eq!(parse(&[]).unwrap(), MountOptions::default());
    assert_eq!(parse(&["", "defaults,"]).unwrap(), MountOptions::default());
}

#[test]
fn ours_are_followed() {
    let expected =
        MountOptions { allow_other: true, default_permissions: true, uid: Some(1000), ..MountOptions::default() };
    assert_eq!(parse(&["ro,allow_other", "default_permissions,uid=1000"]).unwrap(), expected);
}

#[test]
fn how_fresh_and_how_long_are_followed() {
    let options = parse(&["refresh=3,timeout=2"]).unwrap();
    assert_eq!(options.refresh, Some(Refresh::After(Duration::from_secs(3))));
    assert_eq!(options.timeout, Some(Duration::from_secs(2)));
    assert_eq!(parse(&["refresh=never"]).unwrap().refresh, Some(Refresh::Never));
}

#[test]
fn files_and_sizes_are_followed_and_the_command_line_comes_first() {
    let options = parse(&["memory_limit=64MiB,config=/a/b,key_file=/c"]).unwrap();
    assert_eq!(options.memory_limit, Some(64 << 20));
    let global = options.over(&Global::default()).unwrap();
    assert_eq!(global.args.config, Some("/a/b".into()));
    assert_eq!(global.args.key_file, Some("/c".into()));
    let args = GlobalArgs { passphrase_file: Some("/d".into()), ..GlobalArgs::default() };
    let global = options.over(&Global { args, ..Global::default() }).unwrap();
    assert_eq!((global.args.passphrase_file, global.args.key_file), (Some("/d".into()), None));
    assert!(parse(&["passphrase_file=/a,key_file=/b"]).unwrap().over(&Global::default()).is_err());
}

#[test]
fn the_cache_is_followed() {
    let cache = parse(&["cache_dir=/c", "cache_size=64MiB"]).unwrap().cache;
    assert_eq!(cache, CacheArgs { cache_dir: Some("/c".into()), cache_size: Some(64 << 20), no_cache: false });
    assert!(parse(&["no_cache"]).unwrap().cache.no_cache);
    for contradiction in ["no_cache,cache_dir=/c", "cache_size=1,no_cache"] {
        let error = parse(&[contradiction]).unwrap_err();
        assert!(error.message.contains("no_cache"), "{error}");
    }
}

#[test]
fn what_is_shown_is_followed() {
    let options = parse(&["host=a,host=b,tag=t,path=/etc,owner=1:2,readable,deny=cat:dog,snapshot=latest:/etc"]);
    let options = options.unwrap();
    assert_eq!((options.show.host.len(), options.show.deny.len()), (2, 2));
    assert_eq!((options.show.owner, options.show.readable), (Some(Owner::Is(1, 2)), true));
    assert_eq!(options.snapshot.as_deref(), Some("latest:/etc"));
    // Without a value it is fstab's.
    assert_eq!(parse(&["owner"]).unwrap(), MountOptions::default());
}

#[test]
fn unknown_ones_are_named() {
    for option in [
        "refresh=0",
        "refresh",
        "timeout=0",
        "timeout=241",
        "timeout=never",
        "memory_limit=much",
        "cache_size=much",
        "cache_dir=here",
        "no_cache=1",
        "config=here.toml",
        "key_file",
        "allow_ohter",
        "uid",
        "uid=me",
        "allow_other=1",
        "ro=1",
    ] {
        let error = parse(&[&format!("ro,{option}")]).unwrap_err();
        assert!(error.message.contains(option), "{error}");
        assert_eq!(error.exit, Exit::Usage);
    }
}

use super::super::exit::Exit;
