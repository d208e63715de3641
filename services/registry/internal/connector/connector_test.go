package connector_test

import (
	"strings"
	"testing"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/connector"
)

func good() connector.Connector {
	return connector.Connector{DisplayName: "x", AccountID: "A-1", Region: "in1", Passcode: "p"}
}

func TestEachRegionHasItsHostAndAnOverrideWins(t *testing.T) {
	for region, host := range map[string]string{
		"eu1": "https://api.clevertap.com", "in1": "https://in1.api.clevertap.com", "sg1": "https://sg1.api.clevertap.com", "us1": "https://us1.api.clevertap.com",
		"aps3": "https://aps3.api.clevertap.com", "mec1": "https://mec1.api.clevertap.com",
	} {
		c := good()
		c.Region = region
		if err := c.Normalize(); err != nil || c.BaseURL() != host || c.PartnerEndpoint() != host+"/partner/mixpanel/cohort" {
			t.Errorf("%s: %s %s %v", region, c.BaseURL(), c.PartnerEndpoint(), err)
		}
		c.HostURL = "http://127.0.0.1:8090/"
		if c.BaseURL() != "http://127.0.0.1:8090" {
			t.Errorf("override: %s", c.BaseURL())
		}
	}
}

func TestOnlyTheCustomListNeedsAnAdminsAddress(t *testing.T) {
	for _, channel := range []connector.Channel{connector.Partner, connector.APISegment} {
		c := good()
		c.Channel = channel
		if err := c.Normalize(); err != nil || c.Channel != channel {
			t.Errorf("channel %d: %v", channel, err)
		}
	}
}

func TestWhatCannotWorkIsRefusedByField(t *testing.T) {
	for field, change := range map[string]func(*connector.Connector){
		"connector.display_name":          func(c *connector.Connector) { c.DisplayName = "" },
		"connector.clevertap.account_id":  func(c *connector.Connector) { c.AccountID = "" },
		"connector.clevertap.region":      func(c *connector.Connector) { c.Region = "sk1" },
		"connector.clevertap.passcode":    func(c *connector.Connector) { c.Passcode = "two words" },
		"connector.clevertap.host_url":    func(c *connector.Connector) { c.HostURL = "ftp://x" },
		"connector.clevertap.partner_url": func(c *connector.Connector) { c.PartnerURL = "https://u:p@x" },
		"connector.clevertap.admin_email": func(c *connector.Connector) { c.Channel = connector.CustomList },
		"connector.clevertap.columns": func(c *connector.Connector) {
			c.Columns = []connector.Column{{Property: "a", Field: "F"}, {Property: "b", Field: "f"}}
		},
	} {
		c := good()
		change(&c)
		f := fault.As(c.Normalize())
		if f == nil || f.Code != fault.Invalid || f.Violations[0].Field != field || strings.Contains(f.Public, "two words") {
			t.Errorf("%s: %v", field, f)
		}
	}
}
