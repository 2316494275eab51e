use proptest::prelude::*;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn address(text: &str) -> RegisteredAddress {
    RegisteredAddress::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn text_and_host_text_of_each_form() {
    for (given, text, host) in [
        ("any", "any", "any"),
        ("!any", "any", "any"),
        ("10.0.0.2", "10.0.0.2", "10.0.0.2"),
        ("!10.0.0.2", "10.0.0.2", "10.0.0.2"),
        ("0.0.0.0", "0.0.0.0", "0.0.0.0"),
        ("10.6.6.6/32", "10.6.6.6", "10.6.6.6"),
        ("10.3.7.1/16", "10.3.7.1/16", "10.3.7.1"),
        ("10.3.0.0/255.255.0.0", "10.3.0.0/16", "10.3.0.0"),
        ("10.3.0.0/255.255.255.255", "10.3.0.0", "10.3.0.0"),
        ("10.3.0.0/0", "10.3.0.0/0", "10.3.0.0"),
        ("::ffff:10.1.2.3", "10.1.2.3", "10.1.2.3"),
        ("::FFFF:10.1.2.0/24", "10.1.2.0/24", "10.1.2.0"),
        ("::ffff:a01:203", "10.1.2.3", "10.1.2.3"),
        ("::ffff:a01:203/120", "10.1.2.3/24", "10.1.2.3"),
        (
            "::1",
            "0000:0000:0000:0000:0000:0000:0000:0001",
            "0000:0000:0000:0000:0000:0000:0000:0001",
        ),
        (
            "::",
            "0000:0000:0000:0000:0000:0000:0000:0000",
            "0000:0000:0000:0000:0000:0000:0000:0000",
        ),
        (
            "2001:db8::ab/64",
            "2001:0DB8:0000:0000:0000:0000:0000:00AB/64",
            "2001:0DB8:0000:0000:0000:0000:0000:00AB",
        ),
    ] {
        assert_eq!(address(given).text(), text, "{given}");
        assert_eq!(address(given).host_text(), host, "{given}");
    }
}

#[test]
fn what_is_no_address_is_refused() {
    for text in [
        "",
        "ANY",
        "anybody",
        "10.1.2",
        "10.1.2.300",
        "010.1.1.1",
        "10.0.0.0/33",
        "10.0.0.0/",
        "10.0.0.0/-1",
        "10.0.0.0/08",
        "10.0.0.0/255.0.255.0",
        "10.0.0.0/8/8",
        "::1/129",
        "::1/255.255.0.0",
        "::ffff:10.0.0.0/104",
        "fe80::1%eth0",
        "10.0.0.1 ",
        "host.example",
        "!!any",
        "src",
    ] {
        assert_eq!(RegisteredAddress::parse(text), Err(AddressError), "{text}");
    }
}

#[test]
fn host_bits_do_not_count_in_matching() {
    let network = address("10.3.7.1/16");
    assert!(network.matches(ip("10.3.0.0")));
    assert!(network.matches(ip("10.3.255.255")));
    assert!(!network.matches(ip("10.4.0.1")));
    assert!(!network.is_single_host());
    assert_eq!(network.network(), Some("10.3.0.0/16".parse().expect("a network")));
}

#[test]
fn families_do_not_mix_but_mapped_peers_are_ipv4() {
    assert!(!address("0.0.0.0/0").matches(ip("2001:db8::1")));
    assert!(!address("::/0").matches(ip("10.0.0.1")));
    assert!(!address("::/0").matches(ip("::ffff:10.0.0.1")));
    assert!(address("10.0.0.1").matches(ip("::ffff:10.0.0.1")));
    assert!(address("any").matches(ip("2001:db8::1")));
}

#[test]
fn only_a_full_mask_is_a_single_host() {
    assert!(address("10.0.0.1").is_single_host());
    assert!(address("10.0.0.1/32").is_single_host());
    assert!(address("::1").is_single_host());
    assert!(!address("any").is_single_host());
    assert!(!address("::1/127").is_single_host());
    assert_eq!(address("::ffff:10.0.0.1").single_host(), Some(ip("10.0.0.1")));
}

#[test]
fn source_text_is_the_text_of_the_registered_host() {
    assert_eq!(source_text(ip("::ffff:10.0.0.5")), "10.0.0.5");
    assert_eq!(source_text(ip("fe80::1")), "FE80:0000:0000:0000:0000:0000:0000:0001");
    for text in ["10.0.0.5", "fe80::1", "::ffff:1.2.3.4"] {
        assert_eq!(RegisteredAddress::host(ip(text)).text(), source_text(ip(text)));
    }
}

proptest! {
    #[test]
    fn any_text_parses_or_is_refused(text in "\\PC{0,60}") {
        let _ = RegisteredAddress::parse(&text);
    }

    #[test]
    fn written_text_reads_back_as_the_same(host in any::<IpAddr>(), prefix in 0u8..=128) {
        let bits = if host.is_ipv4() { 32 } else { 128 };
        let given = format!("{host}/{}", prefix.min(bits));
        // A mapped IPv6 address prints with dots, and then 104 is no IPv4 prefix.
        prop_assume!(host.to_canonical() == host);
        let first = RegisteredAddress::parse(&given).expect("a host and a prefix");
        let second = RegisteredAddress::parse(first.text()).expect("what was written");
        prop_assert_eq!(&first, &second);
        prop_assert!(first.matches(host));
    }
}
