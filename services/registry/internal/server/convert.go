package server

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/resource"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/account"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/connector"
	"github.com/cohortbridge/cohortbridge/services/registry/internal/project"
)

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func etag(version int64) string { return fmt.Sprintf("v%d", version) }

func projectName(id int64) string { return resource.Name("projects", id) }

func projectProto(p project.Project) *registryv1.Project {
	return &registryv1.Project{
		Name:           projectName(p.ID),
		DisplayName:    p.DisplayName,
		Token:          p.Token,
		IdentitySystem: typev1.IdentitySystem(p.Identity),
		Mtu:            mtuProto(p),
		CreateTime:     stamp(p.CreateTime),
		Etag:           etag(p.Version),
	}
}

// setMtu copies the settings the paths name from m to p.
func setMtu(p *project.Project, m *registryv1.MtuSettings, paths []string) {
	for _, path := range paths {
		switch path {
		case "mtu.match_by_name_only":
			p.MatchByNameOnly = m.GetMatchByNameOnly()
		case "mtu.clevertap_sources":
			p.CleverTapSources = m.GetClevertapSources()
		case "mtu.by_event_time":
			p.ByEventTime = m.GetByEventTime()
		case "mtu.partner_markers":
			p.PartnerMarkers = nil
			for rule, v := range m.GetPartnerMarkers() {
				if p.PartnerMarkers == nil {
					p.PartnerMarkers = map[string][]string{}
				}
				p.PartnerMarkers[rule] = v.GetValues()
			}
		}
	}
}

// mtuPaths are the settings of MTU, which updates change one by one.
var mtuPaths = []string{"mtu.match_by_name_only", "mtu.clevertap_sources", "mtu.by_event_time", "mtu.partner_markers"}

func mtuProto(p project.Project) *registryv1.MtuSettings {
	m := &registryv1.MtuSettings{MatchByNameOnly: p.MatchByNameOnly, ClevertapSources: p.CleverTapSources, ByEventTime: p.ByEventTime}
	for rule, v := range p.PartnerMarkers {
		if m.PartnerMarkers == nil {
			m.PartnerMarkers = map[string]*registryv1.MarkerValues{}
		}
		m.PartnerMarkers[rule] = &registryv1.MarkerValues{Values: v}
	}
	return m
}

func accountProto(a account.Account) *registryv1.ServiceAccount {
	return &registryv1.ServiceAccount{
		Name:        resource.Name("projects", a.ProjectID, "serviceAccounts", a.ID),
		DisplayName: a.DisplayName,
		Username:    a.Username,
		Role:        typev1.Role(a.Role),
		ExpireTime:  stamp(a.ExpireTime),
		CreateTime:  stamp(a.CreateTime),
	}
}

func connectorName(c connector.Connector) string {
	return resource.Name("projects", c.ProjectID, "connectors", c.ID)
}

func connectorProto(c connector.Connector) *registryv1.Connector {
	ct := &registryv1.CleverTap{
		AccountId: c.AccountID, Region: c.Region, Channel: registryv1.CleverTap_Channel(c.Channel),
		HostUrl: c.HostURL, PartnerUrl: c.PartnerURL, AdminEmail: c.AdminEmail, IdentityProperty: c.IdentityProperty,
	}
	for _, col := range c.Columns {
		ct.Columns = append(ct.Columns, &registryv1.Column{Property: col.Property, Field: col.Field})
	}
	return &registryv1.Connector{
		Name: connectorName(c), DisplayName: c.DisplayName,
		Destination: &registryv1.Connector_Clevertap{Clevertap: ct},
		State:       registryv1.Connector_State(c.State), StateReason: c.StateReason,
		CheckTime: stamp(c.CheckTime), CreateTime: stamp(c.CreateTime), Etag: etag(c.Version),
	}
}

func columns(in []*registryv1.Column) []connector.Column {
	var out []connector.Column
	for _, c := range in {
		out = append(out, connector.Column{Property: c.GetProperty(), Field: c.GetField()})
	}
	return out
}

// setConnector copies the fields the paths name from in to c.
func setConnector(c *connector.Connector, in *registryv1.Connector, paths []string) {
	ct := in.GetClevertap()
	for _, p := range paths {
		switch p {
		case "display_name":
			c.DisplayName = in.GetDisplayName()
		case "clevertap.account_id":
			c.AccountID = ct.GetAccountId()
		case "clevertap.passcode":
			c.Passcode = ct.GetPasscode()
		case "clevertap.region":
			c.Region = ct.GetRegion()
		case "clevertap.channel":
			c.Channel = connector.Channel(ct.GetChannel())
		case "clevertap.host_url":
			c.HostURL = ct.GetHostUrl()
		case "clevertap.partner_url":
			c.PartnerURL = ct.GetPartnerUrl()
		case "clevertap.columns":
			c.Columns = columns(ct.GetColumns())
		case "clevertap.admin_email":
			c.AdminEmail = ct.GetAdminEmail()
		case "clevertap.identity_property":
			c.IdentityProperty = ct.GetIdentityProperty()
		}
	}
}

// outputPaths are what an update may name without changing it.
var outputPaths = []string{"name", "state", "state_reason", "check_time", "create_time", "etag", "clevertap.account_id"}

// connectorPaths are what an update may change; creates set account_id as well.
var connectorPaths = []string{
	"display_name", "clevertap.passcode", "clevertap.region", "clevertap.channel", "clevertap.host_url",
	"clevertap.partner_url", "clevertap.columns", "clevertap.admin_email", "clevertap.identity_property",
}
