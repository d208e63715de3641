package upstream

import (
	"context"
	"fmt"
	"strconv"

	"github.com/cespare/xxhash/v2"

	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/clevertap"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/engine"
)

// Connectors asks registry's CredentialService. It is an engine.Connectors.
type Connectors struct {
	// Client reaches the service.
	Client registryv1.CredentialServiceClient
	// CleverTap makes the calls to CleverTap.
	CleverTap *clevertap.Client
	// PartnerURL is used where a connector has none of its own.
	PartnerURL string
}

var _ engine.Connectors = Connectors{}

const defaultPartnerProperty = "$CleverTap_user_id"

func connectorName(project, connector int64) string {
	return fmt.Sprintf("projects/%d/connectors/%d", project, connector)
}

// defaultColumns are what Mixpanel sends to CleverTap when nothing is chosen.
// Source: https://docs.clevertap.com/docs/mixpanel-integration.
var defaultColumns = []channel.Column{{Property: "$email"}, {Property: "$first_name"}, {Property: "$last_name"}, {Property: "$phone"}}

// Resolve implements engine.Connectors.
func (c Connectors) Resolve(ctx context.Context, project, connector int64) (*engine.Destination, error) {
	resp, err := c.Client.ResolveConnector(ctx, &registryv1.ResolveConnectorRequest{Name: connectorName(project, connector)})
	if err != nil {
		return nil, toFault("reading the connector", err)
	}
	ct := resp.GetConnector().GetClevertap()
	if ct == nil {
		return nil, fault.New(fault.Invalid, "CONNECTOR_UNSUPPORTED", "the connector is of a type this version can't deliver to")
	}
	base, err := clevertap.CheckURL("clevertap.host_url", ct.GetHostUrl()) // the registry fills in the region's
	if err != nil {
		return nil, err
	}
	acct := clevertap.Account{ID: ct.GetAccountId(), Passcode: resp.GetPasscode(), BaseURL: base, AdminEmail: ct.GetAdminEmail()}
	d := &engine.Destination{Account: acct.ID + "\x00" + base, PartnerProperty: ct.GetIdentityProperty()}
	if d.PartnerProperty == "" {
		d.PartnerProperty = defaultPartnerProperty
	}
	var columns []channel.Column
	for _, col := range ct.GetColumns() {
		columns = append(columns, channel.Column{Property: col.GetProperty(), Field: col.GetField()})
	}
	if len(columns) == 0 {
		columns = defaultColumns
	}
	written := strconv.Quote(d.PartnerProperty)
	for _, col := range columns {
		d.Properties = append(d.Properties, col.Property)
		written += strconv.Quote(col.Property) + strconv.Quote(col.Field)
	}
	cfg := channel.Config{Client: c.CleverTap, Columns: columns}
	kind := ct.GetChannel()
	switch kind {
	case registryv1.CleverTap_CHANNEL_UNSPECIFIED, registryv1.CleverTap_CHANNEL_PARTNER:
		kind = registryv1.CleverTap_CHANNEL_PARTNER
		url := ct.GetPartnerUrl()
		if url == "" {
			url = c.PartnerURL
		}
		if url == "" {
			url = base + "/partner/mixpanel/cohort"
		}
		if acct.PartnerURL, err = clevertap.CheckURL("clevertap.partner_url", url); err != nil {
			return nil, err
		}
		cfg.Account = acct
		d.Place = acct.ID + "\x00" + acct.PartnerURL
		d.Channel = channel.NewPartner(cfg)
	case registryv1.CleverTap_CHANNEL_CUSTOM_LIST:
		cfg.Account = acct
		d.Place = d.Account
		d.Channel = channel.NewCustomList(cfg)
	case registryv1.CleverTap_CHANNEL_API_SEGMENT:
		cfg.Account = acct
		d.Place = d.Account
		d.Channel = channel.NewAPISegment(cfg)
	default:
		return nil, fault.New(fault.Invalid, "CONNECTOR_UNSUPPORTED", "the connector's channel is one this version can't deliver through")
	}
	d.Connected = resp.GetConnector().GetState() == registryv1.Connector_STATE_CONNECTED
	d.Fingerprint = xxhash.Sum64String(written)<<8 | uint64(kind)
	return d, nil
}

// ReportConnected implements engine.Connectors.
func (c Connectors) ReportConnected(ctx context.Context, project, connector int64) error {
	_, err := c.Client.ReportConnectorState(ctx, &registryv1.ReportConnectorStateRequest{
		Name: connectorName(project, connector), State: registryv1.Connector_STATE_CONNECTED})
	return toFault("reporting the connector's state", err)
}

// ReportRefused implements engine.Connectors.
func (c Connectors) ReportRefused(ctx context.Context, project, connector int64, text string) error {
	_, err := c.Client.ReportConnectorState(ctx, &registryv1.ReportConnectorStateRequest{
		Name: connectorName(project, connector), State: registryv1.Connector_STATE_REFUSED, Reason: text})
	return toFault("reporting the connector's state", err)
}
