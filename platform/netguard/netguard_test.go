package netguard_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/netguard"
)

func TestPrivateAddressesAreRefusedAtDialTimeUnlessAllowed(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer srv.Close()
	get := func(allow bool, url string) error {
		c := &http.Client{Transport: netguard.Transport(allow, 1)}
		defer c.CloseIdleConnections()
		resp, err := c.Get(url)
		if err == nil {
			_ = resp.Body.Close()
		}
		return err
	}
	if err := get(true, srv.URL); err != nil {
		t.Fatalf("allowed: %v", err)
	}
	port := srv.URL[strings.LastIndex(srv.URL, ":"):]
	for _, host := range []string{"127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "[::1]", "[fd00::1]"} {
		if err := get(false, "http://"+host+port); fault.As(err) == nil || fault.As(err).Reason != "PRIVATE_ADDRESS" {
			t.Errorf("%s: %v, want PRIVATE_ADDRESS", host, err)
		}
	}
}

func TestOnlyPlainHTTPURLsAreDestinations(t *testing.T) {
	for url, ok := range map[string]bool{"https://api.example": true, "http://h:1/x": true, "ftp://h": false, "//h": false, "h": false, "https://u:p@h": false, "file:///etc/passwd": false, "http://": false, "": false} {
		if err := netguard.CheckURL("f", url); (err == nil) != ok {
			t.Errorf("%q: %v", url, err)
		}
	}
}
