package clevertap

import (
	"net/url"

	"github.com/cohortbridge/cohortbridge/platform/fault"
)

// CheckURL returns raw without a trailing slash, or an Invalid fault naming field.
func CheckURL(field, raw string) (string, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || u.Fragment != "" {
		return "", fault.Field(field, "must be an http or https URL without user and fragment")
	}
	for len(u.Path) > 0 && u.Path[len(u.Path)-1] == '/' {
		u.Path = u.Path[:len(u.Path)-1]
	}
	return u.String(), nil
}
