// Package connector is what a CleverTap connector is: its settings, their
// defaults and limits, and its state.
package connector

import (
	"context"
	"strings"
	"time"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/netguard"
)

// State is what the last connect check found; the numbers are stored and equal
// the contract's.
type State int

// The states.
const (
	Unchecked   State = 1
	Connected   State = 2
	Refused     State = 3
	Unreachable State = 4
)

// Channel is how membership travels; the numbers equal the contract's.
type Channel int

// The channels.
const (
	Partner    Channel = 1
	CustomList Channel = 2
	APISegment Channel = 3
)

// Column maps a profile property to a field at CleverTap.
type Column struct {
	Property string `json:"property"`
	Field    string `json:"field"`
}

// Connector is a CleverTap project with its credentials and columns.
type Connector struct {
	ID               int64
	ProjectID        int64
	DisplayName      string
	AccountID        string
	Region           string
	Channel          Channel
	HostURL          string // as configured; empty means the region's
	PartnerURL       string // as configured; empty means under the host
	Columns          []Column
	AdminEmail       string
	IdentityProperty string
	Passcode         string // in the clear, in memory only
	State            State
	StateReason      string
	CheckTime        time.Time
	CreateTime       time.Time
	Version          int64
}

// hosts are CleverTap's API hosts by region
// (https://developer.clevertap.com/docs/authentication#region). sk1 is special:
// it needs an explicit host.
var hosts = map[string]string{
	"eu1":  "https://api.clevertap.com",
	"in1":  "https://in1.api.clevertap.com",
	"sg1":  "https://sg1.api.clevertap.com",
	"us1":  "https://us1.api.clevertap.com",
	"aps3": "https://aps3.api.clevertap.com",
	"mec1": "https://mec1.api.clevertap.com",
}

// BaseURL is the URL to call, without a trailing slash.
func (c Connector) BaseURL() string {
	if c.HostURL != "" {
		return strings.TrimRight(c.HostURL, "/")
	}
	return hosts[c.Region]
}

// PartnerEndpoint is the URL of the partner channel.
func (c Connector) PartnerEndpoint() string {
	if c.PartnerURL != "" {
		return c.PartnerURL
	}
	return c.BaseURL() + "/partner/mixpanel/cohort"
}

// DefaultColumns are what Mixpanel exports unless told otherwise
// (https://docs.mixpanel.com/docs/cohort-sync); ids travel by themselves.
var DefaultColumns = []Column{{"$first_name", "first_name"}, {"$last_name", "last_name"}, {"$email", "Email"}, {"$phone", "Phone"}}

// DefaultIdentityProperty is the property that holds the CleverTap identity.
const DefaultIdentityProperty = "$CleverTap_user_id"

// Normalize fills defaults and refuses what can't work, naming the field.
func (c *Connector) Normalize() error {
	if c.Channel == 0 {
		c.Channel = Partner
	}
	if c.IdentityProperty == "" {
		c.IdentityProperty = DefaultIdentityProperty
	}
	if len(c.Columns) == 0 {
		c.Columns = append([]Column(nil), DefaultColumns...)
	}
	seen := map[string]bool{}
	for i := range c.Columns {
		col := &c.Columns[i]
		if col.Field == "" {
			col.Field = defaultField(col.Property)
		}
		if seen[strings.ToLower(col.Field)] {
			return fault.Field("connector.clevertap.columns", "two columns go to the field %q", col.Field)
		}
		seen[strings.ToLower(col.Field)] = true
	}
	for field, v := range map[string]string{"connector.display_name": c.DisplayName, "connector.clevertap.account_id": c.AccountID, "connector.clevertap.region": c.Region} {
		if v == "" {
			return fault.Field(field, "is required")
		}
	}
	if c.Passcode == "" {
		return fault.Field("connector.clevertap.passcode", "is required; copy it from CleverTap's Settings > Passcodes")
	}
	if strings.ContainsFunc(c.Passcode, func(r rune) bool { return r < 0x21 || r > 0x7e }) {
		return fault.Field("connector.clevertap.passcode", "has characters that can't be in a passcode")
	}
	if c.HostURL == "" && hosts[c.Region] == "" {
		return fault.Field("connector.clevertap.region", "unknown region %q: want eu1, in1, sg1, us1, aps3 or mec1, or set host_url", c.Region)
	}
	for field, u := range map[string]string{"connector.clevertap.host_url": c.HostURL, "connector.clevertap.partner_url": c.PartnerURL} {
		if u == "" {
			continue
		}
		if err := netguard.CheckURL(field, u); err != nil {
			return err
		}
	}
	if c.Channel == CustomList && !strings.Contains(c.AdminEmail, "@") {
		return fault.Field("connector.clevertap.admin_email", "CUSTOM_LIST needs the address of an admin of the CleverTap account")
	}
	return nil
}

func defaultField(property string) string {
	for _, d := range DefaultColumns {
		if d.Property == property {
			return d.Field
		}
	}
	return strings.TrimLeft(property, "$")
}

// Checker asks the destination whether it accepts the credentials.
type Checker interface {
	// Check returns the state and, unless CONNECTED, why, in the destination's words.
	Check(ctx context.Context, c Connector) (State, string)
}
