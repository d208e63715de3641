package demo

import (
	"context"
	"io"
	"net/http"
	"time"

	"github.com/cohortbridge/cohortbridge/cmd/cohortbridge/internal/roles"
	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	"github.com/cohortbridge/cohortbridge/sandbox"
)

// Again runs the syncs of a data folder that was used before in full: the
// sandbox keeps its segments in memory and starts empty.
func Again(ctx context.Context, creds roles.DevCredentials, out io.Writer) error {
	api := &rest{c: creds, http: &http.Client{Timeout: time.Minute}}
	defer api.http.CloseIdleConnections()
	d := &demo{api: api, out: out}
	// The sandbox may be at another address than last time.
	var connectors registryv1.ListConnectorsResponse
	if err := api.call(ctx, http.MethodGet, api.project()+"/connectors", nil, &connectors); err != nil {
		return err
	}
	for _, c := range connectors.GetConnectors() {
		if c.GetClevertap().GetAccountId() != sandbox.DefaultAccountID {
			continue
		}
		c.GetClevertap().HostUrl = "http://" + creds.SandboxAddr
		if err := api.call(ctx, http.MethodPatch, c.GetName()+"?update_mask=clevertap.host_url", c, &registryv1.UpdateConnectorResponse{}); err != nil {
			return err
		}
	}
	var list cohortsyncv1.ListSyncsResponse
	if err := api.call(ctx, http.MethodGet, api.project()+"/syncs", nil, &list); err != nil {
		return err
	}
	for _, s := range list.GetSyncs() {
		if s.GetState() != cohortsyncv1.Sync_STATE_ACTIVE {
			continue
		}
		var resp cohortsyncv1.RunSyncResponse
		if err := api.call(ctx, http.MethodPost, s.GetName()+":run", &cohortsyncv1.RunSyncRequest{Full: true}, &resp); err != nil {
			return err
		}
		r, err := d.follow(ctx, resp.GetRun().GetName())
		if err != nil {
			return err
		}
		d.say("%s: %d users sent again, trace %s", s.GetName(), r.GetTotals().GetSent(), r.GetTraceId())
	}
	return nil
}
