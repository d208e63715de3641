// Package netguard keeps outgoing calls to addresses a customer configured away
// from the operator's own network: the check is made at dial time, on the
// address actually dialled, so no DNS answer can get around it.
package netguard

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"

	"github.com/cohortbridge/cohortbridge/platform/fault"
)

// Transport returns an HTTP transport that refuses private, loopback,
// link-local, unspecified, multicast and carrier-grade-NAT addresses unless
// allowPrivate. maxConns bounds the connections to one host.
func Transport(allowPrivate bool, maxConns int) *http.Transport {
	d := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	if !allowPrivate {
		d.Control = func(_, address string, _ syscall.RawConn) error {
			host, _, err := net.SplitHostPort(address)
			if err != nil {
				return err
			}
			ip, err := netip.ParseAddr(host)
			if err != nil {
				return err
			}
			if !publicAddress(ip) {
				return fault.New(fault.Precondition, "PRIVATE_ADDRESS", "the destination's address is private; the operator can allow it with --allow-private-destinations")
			}
			return nil
		}
	}
	return &http.Transport{
		DialContext:           d.DialContext,
		MaxIdleConns:          2 * maxConns,
		MaxIdleConnsPerHost:   maxConns,
		MaxConnsPerHost:       2 * maxConns,
		IdleConnTimeout:       60 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: 60 * time.Second,
		ForceAttemptHTTP2:     true,
	}
}

var cgnat = netip.MustParsePrefix("100.64.0.0/10")

func publicAddress(ip netip.Addr) bool {
	ip = ip.Unmap()
	return ip.IsGlobalUnicast() && !ip.IsPrivate() && !ip.IsLoopback() && !ip.IsLinkLocalUnicast() && !cgnat.Contains(ip)
}

// CheckURL refuses what can't be a destination: another scheme than http and
// https, credentials in the URL, or no host. field names it in the error.
func CheckURL(field, raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return fault.Field(field, "want an absolute http or https URL")
	}
	if u.User != nil {
		return fault.Field(field, "credentials do not belong into a URL")
	}
	return nil
}

// NoRedirect is a CheckRedirect that follows nothing: a redirect of a
// destination's API is a misconfiguration, and would carry the headers along.
func NoRedirect(*http.Request, []*http.Request) error {
	return http.ErrUseLastResponse
}
