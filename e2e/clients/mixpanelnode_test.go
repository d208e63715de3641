//go:build clients

package clients

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// certificate makes a certificate for 127.0.0.1 that signs itself.
func certificate(t *testing.T) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "e2e"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for path, b := range map[string][]byte{cert: certPEM, key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kb})} {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return cert, key, pool
}

// node runs the client script over HTTPS; every step must succeed.
func node(t *testing.T, c *harness.Client, cert string, env ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "node", "node.js")
	cmd.Env = append(append(os.Environ(), "HOST="+c.Creds.HTTPAddr, "TOKEN="+c.Creds.ProjectToken, "SECRET="+c.Creds.ProjectSecret, "NODE_EXTRA_CA_CERTS="+cert), env...)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("node: %v\n%s", err, errOut.String())
	}
	steps := 0
	for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); steps++ {
		var s struct {
			Step   string
			Errors []string
		}
		if err := json.Unmarshal(sc.Bytes(), &s); err != nil {
			t.Fatalf("%v: %s", err, sc.Bytes())
		}
		if len(s.Errors) > 0 {
			t.Errorf("%s: %v", s.Step, s.Errors)
		}
	}
	if steps < 3 {
		t.Fatalf("only %d steps ran", steps)
	}
}

func overTLS(c *harness.Client, pool *x509.CertPool) *harness.Client {
	c.Base = "https://" + c.Creds.HTTPAddr
	c.HTTP.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	return c
}

func TestMixpanelNodeTracksImportsAndWritesProfilesOverHTTPS(t *testing.T) {
	cert, key, pool := certificate(t)
	c := overTLS(harness.Standalone(t, t.TempDir(), "--tls-cert", cert, "--tls-key", key).Client(t), pool)
	node(t, c, cert)
	got := c.Export(t)
	if want := []string{"Batch 1", "Batch 2", "Batch 3", "Imported", "Old 1", "Old 2", "Tracked"}; !reflect.DeepEqual(harness.Names(got), want) {
		t.Fatalf("exported %v, want %v", harness.Names(got), want)
	}
	last := got[len(got)-1].Properties
	if last["plan"] != "pro+" || last["note"] != "ÿ>?~" || last["distinct_id"] != "node-user" {
		t.Fatalf("exported %v", last)
	}
	props := c.Profile(t, "node-user")
	want := map[string]any{"name": "Ada", "first": "yes", "visits": 5.0, "fresh": 2.0, "tags": []any{"a", "b"}}
	for k, v := range want {
		if !reflect.DeepEqual(props[k], v) {
			t.Errorf("%s = %v, want %v", k, props[k], v)
		}
	}
	if _, there := props["gone"]; there {
		t.Error("an unset property is still there")
	}
	if _, err := c.Data().GetProfile(t.Context(), &ingestionv1.GetProfileRequest{Parent: c.Project, DistinctId: "node-gone"}); status.Code(err) != codes.NotFound {
		t.Errorf("profile after delete_user: %v, want NotFound", err)
	}
}

func TestMixpanelNodeAliasJoinsTwoIdsInAnOriginalProject(t *testing.T) {
	cert, key, pool := certificate(t)
	dir := t.TempDir()
	p := harness.Standalone(t, dir, "--tls-cert", cert, "--tls-key", key)
	c := overTLS(p.NewProject(t, dir, typev1.IdentitySystem_IDENTITY_SYSTEM_ORIGINAL), pool)
	node(t, c, cert, "ALIAS=1")
	ids := map[any]bool{}
	for _, e := range c.Export(t) {
		if e.Event == "Before" || e.Event == "After" {
			ids[e.Properties["distinct_id"]] = true
		}
	}
	if len(ids) != 1 {
		t.Fatalf("events before and after the alias have the ids %v, want one", ids)
	}
}
