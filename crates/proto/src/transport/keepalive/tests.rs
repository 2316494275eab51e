#![allow(clippy::indexing_slicing, reason = "a test may panic")]

use proptest::prelude::*;

use super::*;

fn some(text: &str) -> Option<&str> {
    Some(text)
}

#[test]
fn wazuh_on_linux() {
    let uname = "Linux |dyn5 |6.1.0-28-amd64 |#1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 |x86_64";
    let text = format!(
        "{uname} [Debian GNU/Linux|debian: 12 (bookworm)] - Wazuh v4.14.7\nx merged.mg\n#\"_agent_ip\":127.0.0.1\n"
    );
    let keepalive = Fields::parse(&text);
    assert_eq!(
        keepalive,
        Fields {
            version: some("Wazuh v4.14.7"),
            merged_sum: some("x"),
            agent_ip: some("127.0.0.1"),
            os_name: some("Debian GNU/Linux"),
            os_version: some("12"),
            os_major: some("12"),
            os_codename: some("bookworm"),
            os_platform: some("debian"),
            os_uname: some(uname),
            os_arch: some("x86_64"),
            ..Fields::default()
        }
    );
    assert_eq!(keepalive.family(), Some(Family::Wazuh));
}

#[test]
fn wazuh_on_windows() {
    let text = "Microsoft Windows 10 Pro [Ver: 10.0.19045.3570] |WIN-1 |x86_64 - Wazuh v4.14.7 / \
                0123456789abcdef0123456789abcdef\nca35f9148a3273413eccb79f149f4757 merged.mg\n#\"_agent_ip\":10.0.0.9\n";
    assert_eq!(
        Fields::parse(text),
        Fields {
            version: some("Wazuh v4.14.7"),
            config_sum: some("0123456789abcdef0123456789abcdef"),
            merged_sum: some("ca35f9148a3273413eccb79f149f4757"),
            agent_ip: some("10.0.0.9"),
            os_name: some("Microsoft Windows 10 Pro"),
            os_version: some("10.0.19045.3570"),
            os_major: some("10"),
            os_minor: some("0"),
            os_build: some("19045.3570"),
            os_platform: some("windows"),
            os_uname: some("Microsoft Windows 10 Pro"),
            os_arch: some("x86_64"),
            ..Fields::default()
        }
    );
}

#[test]
fn older_windows_says_nothing_behind_the_bracket() {
    let keepalive = Fields::parse("Microsoft Windows 7 [Ver: 6.1.7601] - Wazuh v4.2.0\n");
    assert_eq!((keepalive.os_arch, keepalive.os_build), (None, some("7601")));
    let fallback = Fields::parse("Microsoft Windows - Wazuh v4.2.0\n");
    assert_eq!(
        (fallback.os_uname, fallback.os_platform),
        (some("Microsoft Windows"), None)
    );
}

#[test]
fn service_packs_are_minor_numbers_and_sums_may_be_missing() {
    let keepalive = Fields::parse("Linux |h |5 |#1 |x86_64 [SLES|sles: 15-SP7 (name)] - Wazuh v4.14.7 / 0123\n");
    assert_eq!(
        keepalive,
        Fields {
            version: some("Wazuh v4.14.7"),
            config_sum: some("0123"),
            os_name: some("SLES"),
            os_version: some("15-SP7"),
            os_major: some("15"),
            os_minor: some("7"),
            os_codename: some("name"),
            os_platform: some("sles"),
            os_uname: some("Linux |h |5 |#1 |x86_64"),
            os_arch: some("x86_64"),
            ..Fields::default()
        }
    );
}

#[test]
fn merged_line_without_its_line_feed_is_lost() {
    assert_eq!(
        Fields::parse("Linux |a - Wazuh v4.14.7\nx merged.mg"),
        Fields {
            version: some("Wazuh v4.14.7"),
            os_uname: some("Linux |a"),
            ..Fields::default()
        }
    );
}

#[test]
fn labels_stay_as_they_came_and_the_agents_address_is_none_of_them() {
    let keepalive = Fields::parse(
        "Linux |h - Wazuh v4.14.7\n\"env\":prod\n#\"sys\":1\n!\"hid\":x\n#!\"sh\":y\nca35 merged.mg\n\
         Not all labels are being shown in this message\n#\"_agent_ip\":127.0.0.1\n",
    );
    assert_eq!(
        keepalive.labels,
        ["\"env\":prod", "#\"sys\":1", "!\"hid\":x", "#!\"sh\":y"]
    );
    assert_eq!(
        (keepalive.merged_sum, keepalive.agent_ip),
        (some("ca35"), some("127.0.0.1"))
    );
}

#[test]
fn garbage_says_nothing() {
    for text in [
        "garbage line no fields\n",
        "\n",
        "",
        "no line feed",
        "agent shutdown \n",
        "a\n\n\n",
    ] {
        assert_eq!(Fields::parse(text), Fields::default());
    }
}

#[test]
fn ossec_with_its_random_tail() {
    let uname = "Linux web-01 6.1.0-28-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 x86_64";
    let text = |sum, tail| format!("{uname} - OSSEC HIDS v4.2.0{sum}\nx merged.mg\n\n{tail}");
    let keepalive = Keepalive::parse(&text("", "-M7[Bt)g#t=2 - Wazuh v1"));
    let fields = keepalive.fields();
    assert_eq!(
        fields,
        Fields {
            version: some("OSSEC HIDS v4.2.0"),
            merged_sum: some("x"),
            os_uname: some(uname),
            os_arch: some("x86_64"),
            ..Fields::default()
        }
    );
    assert_eq!(fields.family(), Some(Family::Ossec));
    assert_eq!(
        keepalive,
        Keepalive::parse(&text("", "another tail")),
        "the tail does not count"
    );
    let configured = text(" / b1e795edf128218173a32125528a5abf", "");
    let configured = Fields::parse(&configured);
    assert_eq!(configured.config_sum, some("b1e795edf128218173a32125528a5abf"));
    assert_eq!(configured.version, some("OSSEC HIDS v4.2.0"));
}

#[test]
fn wazuhs_qa_simulator() {
    let keepalive = Fields::parse(
        "Linux |agent-debian10 |4.9.0-12-amd64 |#1 SMP Debian 4.9.210-1 (2020-01-20) |x86_64 [Debian GNU/Linux|debian: \
         10 (buster)] - Wazuh v4.9.2 / ab73af41699f13fdd81903b5f23d8d00\nd6e3ac3e75ca0319af3e7c262776f331 merged.mg\n\
         #\"_agent_ip\":10.0.2.15\n",
    );
    assert_eq!(keepalive.config_sum, some("ab73af41699f13fdd81903b5f23d8d00"));
    assert_eq!(keepalive.os_codename, some("buster"));
}

#[test]
fn kernel_name_with_a_dash_in_it_keeps_the_version_whole() {
    let keepalive = Fields::parse("Linux |h |5 |#1 - custom |aarch64 [Arch Linux|arch] - Wazuh v4.9.2\n");
    assert_eq!(keepalive.version, some("Wazuh v4.9.2"));
    assert_eq!(keepalive.os_uname, some("Linux |h |5 |#1 - custom |aarch64"));
    assert_eq!(
        (keepalive.os_name, keepalive.os_platform),
        (some("Arch Linux"), some("arch"))
    );
    assert_eq!((keepalive.os_version, keepalive.os_arch), (None, some("aarch64")));
}

#[test]
fn minor_number_comes_right_behind_the_major_one() {
    let version = |version: &str| {
        let text = format!("Linux |h [Ubuntu|ubuntu: {version}] - Wazuh v4.9.2\n");
        let fields = Fields::parse(&text);
        [fields.os_version, fields.os_major, fields.os_minor].map(|field| field.unwrap_or("none").to_owned())
    };
    assert_eq!(version("22.04.3 LTS"), ["22.04.3 LTS", "22", "04"]);
    assert_eq!(version("rolling"), ["rolling", "none", "none"]);
    assert_eq!(version("7-beta.2"), ["7-beta.2", "7", "none"]);
    assert_eq!(version(""), ["none", "none", "none"]);
}

#[test]
fn version_of_nobody_known_is_no_family() {
    assert_eq!(Fields::parse("Linux - Custom v1\n").version, None);
    let named = Fields::parse("Linux - Custom v1 / 00\n");
    assert_eq!((named.family(), named.version), (None, some("Custom v1")));
    assert_eq!(Fields::parse("Linux - by Wazuh v4.9.2\n").version, some("Wazuh v4.9.2"));
}

proptest! {
    #[test]
    fn arbitrary_keepalives_never_panic(text in "([ -~é\\n]|\\[Ver: | - |Wazuh | / |merged\\.mg|\\|){0,60}") {
        let keepalive = Keepalive::parse(&text);
        prop_assert!(text.starts_with(keepalive.text()));
        let fields = keepalive.fields();
        prop_assert_eq!(keepalive.merged_sum(), fields.merged_sum);
        prop_assert_eq!(&fields, &Fields::parse(&text));
        let _ = fields.family();
    }
}
