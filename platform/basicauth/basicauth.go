// Package basicauth reads Basic credentials as Mixpanel's tools send them.
package basicauth

import (
	"bytes"
	"encoding/base64"
	"strings"
)

// Parse reads an Authorization header with a Basic credential, in base64 or, as
// Mixpanel takes it too, literally: "Basic user:secret"
// (https://developer.mixpanel.com/reference/service-accounts). ok is false for
// another scheme and without a user.
func Parse(header string) (user, secret string, ok bool) {
	scheme, cred, found := strings.Cut(strings.TrimSpace(header), " ")
	if !found || !strings.EqualFold(scheme, "basic") {
		return "", "", false
	}
	cred = strings.TrimSpace(cred)
	if b, err := base64.StdEncoding.DecodeString(cred); err == nil && bytes.IndexByte(b, ':') >= 0 {
		cred = string(b)
	}
	user, secret, _ = strings.Cut(cred, ":")
	return user, secret, user != ""
}
