package benchkit

import (
	"math/rand/v2"
	"strconv"
	"time"
)

// Generator makes events of about 530 bytes with 20 properties, as a mobile and web
// app would send them: few values are frequent, many are rare. It is
// deterministic for a seed and not safe for concurrent use.
type Generator struct {
	rnd    *rand.Rand
	prefix string
	n      int
	users  int
	from   int64
	span   int64
}

var names = []string{"App Launched", "Product Viewed", "Add To Cart", "Search", "Purchase", "Page View", "Wishlist Add", "Notification Clicked", "Signup", "Level Complete"}

// places and devices are properties that come together.
var (
	places = []string{
		`"$city":"Bengaluru","$region":"Karnataka","mp_country_code":"IN"`, `"$city":"Mumbai","$region":"Maharashtra","mp_country_code":"IN"`,
		`"$city":"New Delhi","$region":"Delhi","mp_country_code":"IN"`, `"$city":"Chennai","$region":"Tamil Nadu","mp_country_code":"IN"`,
		`"$city":"Hyderabad","$region":"Telangana","mp_country_code":"IN"`, `"$city":"Pune","$region":"Maharashtra","mp_country_code":"IN"`,
		`"$city":"Jakarta","$region":"Jakarta","mp_country_code":"ID"`, `"$city":"São Paulo","$region":"São Paulo","mp_country_code":"BR"`,
		`"$city":"Dubai","$region":"Dubai","mp_country_code":"AE"`, `"$city":"London","$region":"England","mp_country_code":"GB"`,
		`"$city":"Berlin","$region":"Land Berlin","mp_country_code":"DE"`, `"$city":"New York","$region":"New York","mp_country_code":"US"`,
		`"$city":"Lagos","$region":"Lagos","mp_country_code":"NG"`, `"$city":"Manila","$region":"Metro Manila","mp_country_code":"PH"`,
	}
	devices = []string{
		`"$os":"Android","$os_version":"14","$model":"Pixel 8","$manufacturer":"Google","$screen_height":2400,"$screen_width":1080,"mp_lib":"android","$lib_version":"7.5.2"`,
		`"$os":"Android","$os_version":"13","$model":"SM-A546E","$manufacturer":"samsung","$screen_height":2340,"$screen_width":1080,"mp_lib":"android","$lib_version":"7.5.2"`,
		`"$os":"Android","$os_version":"12","$model":"Redmi Note 11","$manufacturer":"Xiaomi","$screen_height":2400,"$screen_width":1080,"mp_lib":"android","$lib_version":"7.4.1"`,
		`"$os":"Android","$os_version":"11","$model":"CPH2239","$manufacturer":"OPPO","$screen_height":1600,"$screen_width":720,"mp_lib":"android","$lib_version":"7.3.0"`,
		`"$os":"iOS","$os_version":"17.5.1","$model":"iPhone14,5","$manufacturer":"Apple","$screen_height":844,"$screen_width":390,"mp_lib":"swift","$lib_version":"4.3.0"`,
		`"$os":"iOS","$os_version":"16.7.8","$model":"iPhone12,1","$manufacturer":"Apple","$screen_height":896,"$screen_width":414,"mp_lib":"swift","$lib_version":"4.2.7"`,
	}
	currencies = []string{"INR", "USD", "EUR", "BRL", "IDR", "AED"}
)

// NewGenerator makes events of users 0 to users-1, spread over the time from up
// to from+span. prefix makes the insert ids of generators differ.
func NewGenerator(seed uint64, prefix string, users int, from time.Time, span time.Duration) *Generator {
	return &Generator{rnd: rand.New(rand.NewPCG(seed, 1)), prefix: prefix, users: users, from: from.UnixMilli(), span: span.Milliseconds()} //nolint:gosec // synthetic data
}

// UserID is the distinct id of user n.
func UserID(n int) string { return "user-" + strconv.Itoa(1_000_000+n) }

// some picks one of a list, the first ones more often.
func (g *Generator) some(list []string) string {
	return list[min(g.rnd.IntN(len(list)), g.rnd.IntN(len(list)))]
}

// Append appends one event's JSON to b.
func (g *Generator) Append(b []byte) []byte {
	g.n++
	r := g.rnd
	b = append(b, `{"event":"`...)
	b = append(b, g.some(names)...)
	b = append(b, `","properties":{"time":`...)
	b = strconv.AppendInt(b, g.from+r.Int64N(max(1, g.span)), 10)
	b = append(b, `,"distinct_id":"`...)
	b = append(b, UserID(r.IntN(g.users))...)
	b = append(b, `","$insert_id":"`...)
	b = append(b, g.prefix...)
	b = append(b, '-')
	b = strconv.AppendInt(b, int64(g.n), 16)
	b = append(b, `",`...)
	b = append(b, g.some(places)...)
	b = append(b, ',')
	b = append(b, g.some(devices)...)
	b = append(b, `,"$app_version_string":"5.`...)
	b = strconv.AppendInt(b, int64(r.IntN(30)), 10)
	b = append(b, '.')
	b = strconv.AppendInt(b, int64(r.IntN(10)), 10)
	b = append(b, `","$wifi":`...)
	b = strconv.AppendBool(b, r.IntN(3) > 0)
	b = append(b, `,"price":`...)
	b = strconv.AppendInt(b, int64(r.IntN(5000)), 10)
	b = append(b, `.5,"currency":"`...)
	b = append(b, g.some(currencies)...)
	b = append(b, `","sku":"SKU-`...)
	b = strconv.AppendInt(b, int64(r.IntN(100_000)), 10)
	b = append(b, `","session_id":"`...)
	b = strconv.AppendUint(b, r.Uint64(), 16)
	b = append(b, `","screen":"/category/`...)
	b = strconv.AppendInt(b, int64(r.IntN(200)), 10)
	b = append(b, `?from=banner","list_id":`...)
	b = strconv.AppendInt(b, int64(r.IntN(1000)), 10)
	b = append(b, `,"quantity":`...)
	b = strconv.AppendInt(b, int64(1+r.IntN(4)), 10)
	return append(b, `}}`...)
}

// Batch is a JSON array of n events.
func (g *Generator) Batch(n int) []byte {
	b := []byte{'['}
	for i := range n {
		if i > 0 {
			b = append(b, ',')
		}
		b = g.Append(b)
	}
	return append(b, ']')
}
