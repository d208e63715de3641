package clevertap

import (
	"net/url"

	"github.com/cohortbridge/cohortbridge/platform/fault"
)

// hosts are CleverTap's API hosts by data center. sk1 is absent: it is only
// reachable by an explicit host override.
// Source: https://developer.clevertap.com/docs/idc.
var hosts = map[string]string{
	"eu1":  "https://api.clevertap.com",
	"in1":  "https://in1.api.clevertap.com",
	"sg1":  "https://sg1.api.clevertap.com",
	"us1":  "https://us1.api.clevertap.com",
	"aps3": "https://aps3.api.clevertap.com",
	"mec1": "https://mec1.api.clevertap.com",
}

// BaseURL is the URL to put paths after: the override when there is one, else
// the region's host. It fails with an Invalid fault for an unknown region or
// an override that is no http(s) URL.
func BaseURL(region, override string) (string, error) {
	if override != "" {
		return CheckURL("clevertap.host_url", override)
	}
	h, ok := hosts[region]
	if !ok {
		return "", fault.Field("clevertap.region", "%q has no public host: use eu1, in1, sg1, us1, aps3 or mec1, or set host_url", region)
	}
	return h, nil
}

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
