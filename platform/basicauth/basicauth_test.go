package basicauth_test

import (
	"encoding/base64"
	"testing"

	"github.com/cohortbridge/cohortbridge/platform/basicauth"
)

func TestACredentialIsReadInBase64AndLiterally(t *testing.T) {
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for header, want := range map[string][2]string{
		"Basic " + b64("user:se:cret"): {"user", "se:cret"},
		"basic   " + b64("secret:"):    {"secret", ""},
		"Basic user:secret":            {"user", "secret"},
		"Basic abcd:":                  {"abcd", ""},
		"Basic abcd":                   {"abcd", ""},
		"Bearer " + b64("user:secret"): {},
		"Basic":                        {},
		"Basic :secret":                {},
		"Basic " + b64(":secret"):      {},
		"":                             {},
	} {
		user, secret, ok := basicauth.Parse(header)
		if user != want[0] || ok && secret != want[1] || ok != (want[0] != "") {
			t.Errorf("%q is %q, %q, %v", header, user, secret, ok)
		}
	}
}
