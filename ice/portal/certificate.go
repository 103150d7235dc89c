package portal

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"time"
)

// loadCertificate reads the portal's certificate, or makes one and leaves it to the caller to write text, which is nil otherwise.
// Nodes know the certificate by its fingerprint, which is in their tokens: names and dates in it mean nothing, and a new one
// would make every token useless.
func loadCertificate(path string, now time.Time) (certificate tls.Certificate, text []byte, err error) {
	stored, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		text, err = makeCertificate(now)
		stored = text
	}
	if err != nil {
		return certificate, nil, err
	}
	if certificate, err = tls.X509KeyPair(stored, stored); err != nil {
		return certificate, nil, fmt.Errorf("%s is damaged; restore it from a backup (without it all tokens are useless): %w", path, err)
	}
	return certificate, text, nil
}

// makeCertificate returns certificate and key in PEM.
func makeCertificate(now time.Time) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial := make([]byte, 16) // at most 20 (RFC 5280, section 4.1.2.2)
	rand.Read(serial)          // never fails
	serial[0] = 1              // positive
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{CommonName: "sluice portal"},
		NotBefore: now.AddDate(-1, 0, 0), NotAfter: now.AddDate(100, 0, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...), nil
}
